"""Run by test_loop.py in a process of its own, on several devices.

    python loop_worker.py MODEL ROOT

trains a few steps and prints as JSON what the loop did around each dispatch.
"""

import json
import logging
import sys

import jax
import numpy as np
import stage_worker

from nvret_jax.training import loop

STEPS, ROWS, TOKENS = 6, 32, 16


class Batches:
    """Random tokens."""

    seed, steps = 0, STEPS

    def dataset(self, first, start, stop):
        rng = np.random.default_rng(0)
        for _ in range(first, self.steps):
            yield {
                "query_tokens": rng.integers(5, 22, (ROWS, TOKENS), np.int32),
                "query_lengths": np.full(ROWS, TOKENS, np.int32),
                "passage_tokens": rng.integers(5, 22, (2 * ROWS, TOKENS), np.int32),
                "passage_lengths": np.full(2 * ROWS, TOKENS, np.int32),
                "passage_ids": np.arange(2 * ROWS, dtype=np.int32),
                "positive_ids": 2 * np.arange(ROWS, dtype=np.int32)[:, None],
            }


class Fetched:
    """A number of a step that notes when the host asks for its value, which waits for the step."""

    def __init__(self, value, step, seen):
        self._value, self._step, self._seen = value, step, seen

    def __array__(self, dtype=None, copy=None):
        self._seen.append(["fetched", self._step])
        return np.asarray(self._value, dtype)


class Compiled(logging.Handler):
    """Names of the programs that JAX compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        words = record.getMessage().split()
        if words[0] == "Compiling":
            self.names.append(words[1])


def main(model: str, root: str) -> None:
    jax.config.update("jax_log_compiles", True)
    heard = Compiled()
    logging.getLogger("jax").addHandler(heard)
    seen = {"events": []}
    marks = []
    make_step = loop.make_step

    def watched(*args, **kwargs):
        step_fn = make_step(*args, **kwargs)
        events = seen["events"]

        def run(*args):
            if not marks:
                marks.append(len(heard.names))
            *state, metrics = step_fn(*args)
            step = sum(what == "dispatched" for what, _ in events) + 1
            events.append(["dispatched", step])
            marks[1:] = [len(heard.names)]
            return *state, {k: Fetched(v, step, events) for k, v in metrics.items()}

        return run

    loop.make_step = watched
    config = stage_worker.config(
        steps=STEPS, batch_size=ROWS, eval_every=0, checkpoint_every=0, chunk_tokens=256
    )
    stages = [loop.Stage("heavy", config, Batches)]
    loop.train(stage_worker.encoder(model), stages, stage_worker.places(root))
    seen["compiled between the first and the last dispatch"] = heard.names[slice(*marks)]
    seen["devices"] = jax.device_count()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A two-stage run of a tiny BERT, in this process or as one of its own that a signal hits.

    python stage_worker.py '{"model": …, "root": …, "signal": "KILL", "at": 7, "delay": 0.01}'

Batches and dev scores are functions of seed, step and weights alone, so two runs differ only in
what the loop does.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading

import numpy as np
from etils import epath

STEPS = 12  # of each stage
TEXTS = ["wing flow", "the gene cell is in the body", "heat", "shock layer at speed"]


@contextlib.contextmanager
def compiled_once(folder):
    """Programs compiled in this process and in those it starts are kept in a folder."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    values = (str(folder), 0.0)
    before = [getattr(jax.config, name.lower()) for name in names], dict(os.environ)
    for name, value in zip(names, values, strict=True):
        jax.config.update(name.lower(), value)
        os.environ[name] = str(value)
    yield
    for name, value in zip(names, before[0], strict=True):
        jax.config.update(name.lower(), value)
        os.environ.pop(name)
        if name in before[1]:
            os.environ[name] = before[1][name]
    compilation_cache.reset_cache()


class Batches:
    """Random tokens; a query shares its first three with its positive."""

    def __init__(self, seed, steps, batch_size, hit=None):
        self.seed, self.steps, self.size, self.hit = seed, steps, batch_size, hit

    def batch(self, step, start, stop):
        rng = np.random.default_rng([self.seed, step])
        queries = rng.integers(5, 22, (self.size, 8), np.int32)
        passages = rng.integers(5, 22, (2 * self.size, 16), np.int32)
        passages[::2, 1:4] = queries[:, 1:4]
        batch = {
            "query_tokens": queries,
            "query_lengths": rng.integers(4, 9, self.size, np.int32),
            "passage_tokens": passages,
            "passage_lengths": rng.integers(6, 17, 2 * self.size, np.int32),
            "passage_ids": np.arange(2 * self.size, dtype=np.int32),
            "positive_ids": 2 * np.arange(self.size, dtype=np.int32)[:, None],
        }
        group = {name: len(value) // self.size for name, value in batch.items()}
        return {name: v[start * group[name] : stop * group[name]] for name, v in batch.items()}

    def dataset(self, first, start, stop):
        for step in range(first, self.steps):
            if self.hit:
                self.hit(step)
            yield self.batch(step, start, stop)


def config(**changes):
    """The options of a short stage; `loss`: a dict of changes."""
    from nvret_jax.training.loss.options import Loss
    from nvret_jax.training.options import Training

    loss = Loss(**changes.pop("loss", {}))
    values = {"batch_size": 8, "steps": STEPS, "num_negatives": 1, "learning_rate": 5e-4}
    values |= {"checkpoint_every": 4, "eval_every": 3}
    return Training(loss=loss, **values | changes)


def stages(hit=None, **changes):
    """'warm', then 'fine' from the best of it, with another batch, schedule and loss."""
    from nvret_jax.training import loop

    def hit_at(first):
        return None if hit is None else lambda step: hit(first + step)

    warm = config(**{"dropout": 0.1} | changes)
    fine = {"batch_size": 4, "schedule": "cosine", "eval_every": 4, "checkpoint_every": 5}
    fine = config(loss={"temperature_learning_rate": 0.01}, **fine | changes)
    return [
        loop.Stage("warm", warm, lambda: Batches(1, STEPS, 8, hit_at(0))),
        loop.Stage("fine", fine, lambda: Batches(2, STEPS, 4, hit_at(STEPS)), start="best"),
    ]


def dev_score(encoder):
    """Goes up and down as the weights move."""
    return float(np.cos(40 * (encoder.encode(TEXTS).astype(np.float64).sum() + 0.56)))


def places(root):
    from nvret_jax.training import loop

    root = epath.Path(root)
    return loop.Places(root / "checkpoints", root / "metrics.jsonl", root / "tensorboard")


def flat(encoder):
    """All weights by dotted path."""
    from flax import nnx

    return {
        ".".join(map(str, path)): np.asarray(value[...])
        for path, value in nnx.to_flat_state(nnx.split(encoder.model)[1])
    }


def encoder(model, devices=None, **changes):
    from nvret_jax import mesh as mesh_lib
    from nvret_jax.models.encoder import Encoder

    mesh = mesh_lib.make_mesh(devices=devices)
    return Encoder.from_pretrained(str(model), mesh=mesh, dropout=0.1, normalize=True, **changes)


def hitter(options):
    """Sends this process a signal some time after a step began."""
    number = getattr(signal, f"SIG{options['signal']}")

    def hit(step):
        if step == options["at"]:
            delay = options.get("delay", 0.0)
            kill = threading.Timer(delay, os.kill, (os.getpid(), number))
            kill.daemon = True
            kill.start()
            if not delay:
                kill.join()

    return hit


def main(options):
    """Runs to the end, to the signal, or (`devices`) on the first so many devices."""
    import jax

    from nvret_jax import main as main_lib
    from nvret_jax import mesh as mesh_lib
    from nvret_jax.errors import InputError, Preempted
    from nvret_jax.training import loop

    if "coordinator" in options:
        mesh_lib.start_distributed("on", options["coordinator"], 2, options["process"])
    student = encoder(options["model"], jax.devices()[: options.get("devices")])
    hit = hitter(options) if options.get("signal") else None
    try:
        trained = loop.train(student, stages(hit), places(options["root"]), dev_score)
    except InputError as error:
        return main_lib.fail(error)
    except Preempted as stop:
        print(stop, flush=True)
        return 143
    if "out" in options:
        np.savez(options["out"], **flat(trained))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    sys.exit(main(json.loads(sys.argv[1])))

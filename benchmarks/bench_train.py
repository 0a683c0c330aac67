"""Training steps against sentence-transformers' trainer: examples per second and peak memory.

    python benchmarks/bench_train.py

Same weights, same batches in the same order (32 queries, each with a positive and 4 hard negatives
by BM25), same limit of tokens, same loss (InfoNCE over the batch), AdamW with the same values,
float32, no dropout, default thread counts. Ours is `training.loop.train` itself; theirs is
`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss` (--cached: its cached form). Both
print the loss of each warm-up step, and the largest difference is reported: the work is the same
only if the losses are.

No passage occurs twice in a batch, and none is a judged positive of another of its queries, so that
our masks by id have nothing to do (theirs has none).

Each side runs in a separate process, so that its peak memory (VmHWM) can be measured. The parent
drives them in turn, one idle while the other works, and turns the order round every round. A round
is the same `--steps` batches each time; the first, in which ours compiles, is warm-up and not
counted. A ratio is taken within a round and the median over rounds is reported, over wall-clock
and, beside it, over CPU time. What both do once (loading, ours: tokenising the set) is not timed;
theirs tokenises within its steps, which is what its trainer does, for about 1 % of a step.

What else runs on the machine weighs on both sides, but not alike: torch's threads wait for each
other by spinning. `load_average` says how busy it was at the start of each round (0 is idle, this
benchmark alone makes it 2).

The last line printed is one JSON object; `ratio_vs_sentence_transformers` is our examples per
second over theirs and `memory_ratio` our peak over theirs, each the worse of the data sets, which
have their own figures under their names.

Needs the extra 'parity' (torch, sentence-transformers) and `datasets`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

OURS, THEIRS = SIDES = "nvret_jax", "sentence_transformers"
PACKAGES = ("nvret_jax", "jax", "flax", "optax", "sentence-transformers", "transformers", "torch")
NEGATIVES = 4
# Of both sides, where the caller has not set them. Where libtpu is installed, JAX would load its
# 130 MB to find that there is no TPU; and glibc would keep what each thread has freed for itself.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}
# Of both sides: what `train` of the config has by default, but without a warm-up, whose first step
# the two count differently.
TEMPERATURE, RATE, DECAY, BETAS, EPS, CLIP = 0.05, 2e-5, 0.01, (0.9, 0.999), 1e-8, 1.0


def peak_mib() -> float:
    """This process's peak resident memory, MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit("this system does not report VmHWM in /proc/self/status")


def make_task(args: argparse.Namespace, data: str) -> dict:
    """Texts, and which make up each batch.

    Returns:
        queries [pool · batch] and passages: texts; rows: of each query its positive's and its
        negatives' places in `passages`. Queries stand in the order they are trained on.
    """
    import numpy as np

    from nvret_jax.data.load import load_dataset
    from nvret_jax.search.rankers.bm25 import Bm25Ranker

    dataset = load_dataset(data, splits=("train",))
    place, judged = dataset.corpus.row, dataset.positives("train")
    ids = list(judged)
    ids = [ids[i] for i in np.random.default_rng(args.seed).permutation(len(ids))]
    known = {i: {place[passage] for passage in judged[i]} for i in ids}
    texts = [dataset.queries.texts[dataset.queries.row[i]] for i in ids]
    ranker = Bm25Ranker(texts, list(dataset.corpus.texts))
    batches: list[list[tuple[str, list[int]]]] = []
    taken: set[int] = set()
    for number, i in enumerate(ids):
        if not batches or len(batches[-1]) == args.batch:
            if len(batches) == args.pool:
                break
            batches.append([])
            taken = set()
        own = np.asarray([number]), NEGATIVES
        _, found_qk = ranker.rank(*own, exclude=[sorted(known[i])])
        rows = [min(known[i]), *found_qk[0].tolist()]
        used = known[i] | set(rows)
        if -1 in rows or used & taken:
            continue
        taken |= used
        batches[-1].append((texts[number], rows))
    if len(batches) < args.pool or len(batches[-1]) < args.batch:
        raise SystemExit(f"{data}: too few queries for {args.pool} batches of {args.batch}")
    examples = [example for batch in batches for example in batch]
    needed = sorted({row for _, rows in examples for row in rows})
    at = {row: n for n, row in enumerate(needed)}
    return {
        "queries": [query for query, _ in examples],
        "passages": [dataset.corpus.texts[row] for row in needed],
        "rows": [[at[row] for row in rows] for _, rows in examples],
    }


class Channel:
    """A worker's end: once a round has begun, it measures up to the next request."""

    def __init__(self, args: argparse.Namespace):
        # Answers go to the real stdout; whatever a library prints there goes to stderr.
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.clock: tuple[float, float] | None = None
        self.steps = args.steps
        self.losses: list[float] = []

    def boundary(self) -> None:
        """Between two rounds, when all work of the one before is done; ends the process at last."""
        answer = {"loaded_mib": peak_mib()}
        if self.clock is not None:
            wall, cpu = time.perf_counter() - self.clock[0], time.process_time() - self.clock[1]
            answer = {"seconds": wall, "cpu": cpu, "peak_mib": peak_mib(), "losses": self.losses}
        self.answers.write(json.dumps(answer) + "\n")
        if not sys.stdin.readline():
            self.answers.close()
            os._exit(0)
        self.clock = time.perf_counter(), time.process_time()


def ours(args: argparse.Namespace, task: dict, channel: Channel) -> None:
    """`loop.train` on the task's batches, again and again."""
    import jax
    import numpy as np
    from etils import epath

    from nvret_jax import config as config_lib
    from nvret_jax.data.ragged import Ragged
    from nvret_jax.mining.negatives import Negatives
    from nvret_jax.models.encoder import Encoder
    from nvret_jax.options import blocks
    from nvret_jax.training import loop
    from nvret_jax.training.batches import length_groups
    from nvret_jax.training.batches.examples import Examples, Picked
    from nvret_jax.training.options import Training

    encoder = Encoder.from_pretrained(args.folder, max_length=args.max_length, remat=args.remat)
    rows = np.asarray(task["rows"], np.int32)
    count = len(rows)
    nothing = Ragged.from_rows([[]] * count, np.float32)
    negatives = Negatives(
        query_rows=np.arange(count, dtype=np.int32),
        positive_rows=Ragged.from_rows(rows[:, :1], np.int32),
        positive_scores=nothing,
        judged_rows=Ragged.from_rows(rows[:, :1], np.int32),
        negative_rows=Ragged.from_rows(rows[:, 1:], np.int32),
        negative_scores=nothing,
        negative_ranks=nothing,
        teachers=("bm25",),
        negative_teachers=nothing,
        negative_ceilings=nothing,
        ceilings=np.zeros(count, np.float32),
    )
    examples = Examples.build(
        negatives,
        task["queries"],
        task["passages"],
        lambda texts: encoder.tokenize(texts, kind="query"),
        lambda texts: encoder.tokenize(texts, kind="passage"),
        batch_size=args.batch,
        num_negatives=NEGATIVES,
        pad_id=encoder.tokenizer.pad_id,
        seed=0,
    )
    place = epath.Path(args.out)

    class InOrder:
        """The first batches over and over, in the table's order instead of a shuffled one.

        Behind them stand the others, which are never trained on: how wide texts are encoded is
        planned for all batches of a stage, and must not be fitted to a few.
        """

        seed, steps, longest = 0, args.total, examples.longest

        def picked(self, step: int) -> Picked:
            trained = (args.rounds + 1) * args.steps
            first = (step % args.steps if step < trained else step % args.pool) * args.batch
            return Picked(
                np.arange(first, first + args.batch), rows[first : first + args.batch], None
            )

        def lengths(self, step: int):
            return examples.lengths_of(self.picked(step))

        def batch(self, step: int, start: int = 0, stop: int | None = None):
            picked = self.picked(step)
            return examples.fill(picked[start:stop], examples.widths(picked), 1)

    def in_turn(make, first: int, stop: int):
        """Batches when the loop asks for them, not ahead: a round ends where one is asked for."""
        for step in range(first, stop):
            if step % args.steps == 0:
                for array in jax.live_arrays():  # a step is dispatched before it is done
                    if not array.is_deleted():
                        array.block_until_ready()
                if step > args.steps:  # metrics are written one step late
                    lines = (place / "metrics.jsonl").read_text().splitlines()[: args.steps]
                    channel.losses = [json.loads(line)["loss"] for line in lines]
                channel.boundary()
            yield make(step)

    length_groups.prefetched = in_turn
    config = config_lib.base().train
    config.update(
        {"batch_size": args.batch, "steps": args.total, "temperature": TEMPERATURE, "warmup": 0.0}
    )
    config.update({"learning_rate": RATE, "weight_decay": DECAY, "clip_norm": CLIP, "eps": EPS})
    config.b1, config.b2 = BETAS
    config.update({"checkpoint_every": 0, "chunk_tokens": args.chunk_tokens, "dropout": 0.0})
    config.recompute = bool(args.recompute)
    places = loop.Places(place / "checkpoints", place / "metrics.jsonl", place / "tensorboard")
    loop.train(encoder, [loop.Stage("train", blocks.read(Training, config), InOrder)], places)


def theirs(args: argparse.Namespace, task: dict, channel: Channel) -> None:
    """Their trainer on the task's batches, again and again."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = SentenceTransformer(
        args.folder, device="cpu", local_files_only=True, config_kwargs=none
    )
    model.max_seq_length = args.max_length
    passages, rows = task["passages"], task["rows"]
    names = ["positive", *(f"negative_{n}" for n in range(1, NEGATIVES + 1))]
    columns = {name: [passages[row[n]] for row in rows] for n, name in enumerate(names)}
    dataset = Dataset.from_dict({"anchor": task["queries"], **columns})
    if args.cached:
        loss = losses.CachedMultipleNegativesRankingLoss(
            model, scale=1 / TEMPERATURE, mini_batch_size=args.mini_batch
        )
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)

    class InOrder(DefaultBatchSampler):
        def __init__(self, dataset, **kwargs):
            super().__init__(SequentialSampler(dataset), **kwargs)

    class Rounds(TrainerCallback):
        def on_train_begin(self, *_, **__):
            channel.boundary()

        def on_step_end(self, arguments, state, control, **_):
            if state.global_step % args.steps == 0:
                channel.boundary()

    class Trainer(SentenceTransformerTrainer):
        def compute_loss(self, *call, **kwargs):
            value = super().compute_loss(*call, **kwargs)
            if len(channel.losses) < args.steps:
                channel.losses.append(float(value.detach()))
            return value

    arguments = SentenceTransformerTrainingArguments(
        output_dir=args.out,
        per_device_train_batch_size=args.batch,
        max_steps=args.total,
        learning_rate=RATE,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=CLIP,
        lr_scheduler_type="linear",
        warmup_steps=0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        batch_sampler=InOrder,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Rounds()]
    )
    trainer.train()


def work(args: argparse.Namespace) -> None:
    """One side's process."""
    channel = Channel(args)
    task = json.loads(pathlib.Path(args.task).read_text())
    (ours if args.side == OURS else theirs)(args, task, channel)


class Worker:
    """A side's process as the parent sees it; `ask()` makes it train a round."""

    def __init__(self, side: str, args: argparse.Namespace, folder: str, place: pathlib.Path):
        self.side, self.rounds = side, []
        out = place / side
        out.mkdir()
        command = [sys.executable, __file__, "--side", side, "--folder", folder]
        command += ["--task", str(place / "task.json"), "--out", str(out)]
        command += ["--total", str(args.stage)]
        for name in (
            "rounds",
            "pool",
            "steps",
            "batch",
            "max_length",
            "chunk_tokens",
            "recompute",
            "remat",
            "mini_batch",
        ):
            command += [f"--{name}", str(getattr(args, name))]
        command += ["--cached"] if args.cached else []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT | os.environ,
        )
        self.start = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side}: the process ended; run it with --verbose to see why")
        return json.loads(line)

    def ask(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(args: argparse.Namespace, data: str, folder: str) -> dict:
    """Both sides on one data set."""
    task = make_task(args, data)
    count = args.steps * args.batch
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "task.json").write_text(json.dumps(task))
        sides = [side for side in SIDES if args.only in ("", side)]
        workers = {side: Worker(side, args, folder, place) for side in sides}
        warm = {side: workers[side].ask() for side in sides}
        loads = []
        for number in range(args.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            for side in sides if number % 2 == 0 else sides[::-1]:
                workers[side].rounds.append(workers[side].ask())
            last = {s: workers[s].rounds[-1] for s in sides}
            done = "  ".join(
                f"{s} {r['seconds']:.1f} s, CPU {r['cpu']:.1f} s" for s, r in last.items()
            )
            print(f"{data}, round {number + 1}/{args.rounds}: {done}", flush=True)
        for worker in workers.values():
            worker.close()
    if args.only:
        return {"peak_mib": workers[args.only].rounds[-1]["peak_mib"]}

    def ratio(field: str) -> float:
        pairs = zip(workers[OURS].rounds, workers[THEIRS].rounds, strict=True)
        return round(statistics.median(t[field] / o[field] for o, t in pairs), 3)

    losses = {side: workers[side].rounds[-1]["losses"] for side in sides}
    differences = [abs(o - t) for o, t in zip(losses[OURS], losses[THEIRS], strict=True)]
    peak = {side: workers[side].rounds[-1]["peak_mib"] for side in sides}
    return {
        "ratio_vs_sentence_transformers": ratio("seconds"),
        "cpu_time_ratio": ratio("cpu"),
        "memory_ratio": round(peak[OURS] / peak[THEIRS], 3),
        "examples_per_s": {
            s: round(count / statistics.median(r["seconds"] for r in workers[s].rounds), 2)
            for s in sides
        },
        "seconds": {s: [round(r["seconds"], 2) for r in workers[s].rounds] for s in sides},
        "cpu_seconds": {s: [round(r["cpu"], 2) for r in workers[s].rounds] for s in sides},
        "warm_up_s": {s: round(warm[s]["seconds"], 2) for s in sides},
        "peak_mib": {s: round(peak[s], 1) for s in sides},
        "loaded_mib": {s: round(workers[s].start["loaded_mib"], 1) for s in sides},
        "first_loss": {s: losses[s][0] for s in sides},
        "loss_difference": {"first_step": differences[0], "largest": max(differences)},
        "load_average": loads,
    }


def processor() -> str:
    """The processor's name, where the system reports it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(args: argparse.Namespace) -> dict:
    """All data sets; returns the JSON object that is printed."""
    from nvret_jax.models.pretrained.resolve import resolve

    folder = os.fspath(resolve(args.model, download=args.download))
    found = {data: compare(args, data, folder) for data in args.data}
    if args.only:
        return found
    return {
        "benchmark": "train",
        "ratio_vs_sentence_transformers": min(
            r["ratio_vs_sentence_transformers"] for r in found.values()
        ),
        "memory_ratio": max(r["memory_ratio"] for r in found.values()),
        "data": {data.rsplit("/", 1)[-1]: result for data, result in found.items()},
        "batch": {"queries": args.batch, "passages": 1 + NEGATIVES},
        "steps_a_round": args.steps,
        "rounds": args.rounds,
        "steps_of_the_stage": args.stage,
        "max_length": args.max_length,
        "chunk_tokens": args.chunk_tokens,
        "recompute": args.recompute,
        "remat": args.remat,
        "their_loss": f"cached, {args.mini_batch}" if args.cached else "plain",
        "model": args.model,
        "environment": {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()},
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = os.environ.get("NVRET_DATA", "")
    both = [f"beir:{root}/squad", f"beir:{root}/medquad"]
    parser.add_argument("--data", nargs="+", default=both, help="default: squad, medquad")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--max_length", type=int, default=256, help="tokens a text is cut to")
    parser.add_argument("--batch", type=int, default=32, help="queries a batch")
    parser.add_argument("--steps", type=int, default=4, help="batches a round")
    parser.add_argument("--pool", type=int, default=64, help="batches the set has")
    parser.add_argument("--stage", type=int, default=1000, help="steps that the run is set to have")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each side")
    parser.add_argument("--chunk_tokens", type=int, default=0, help="ours: train.chunk_tokens")
    parser.add_argument("--remat", default="dots", help="ours: student.remat")
    parser.add_argument("--recompute", type=int, default=0, help="ours: train.recompute")
    parser.add_argument("--cached", action="store_true", help="theirs: the cached loss")
    parser.add_argument("--mini_batch", type=int, default=32, help="theirs, with --cached")
    parser.add_argument("--seed", type=int, default=0, help="of which queries are taken")
    parser.add_argument("--only", default="", choices=("", *SIDES), help="time one side alone")
    parser.add_argument("--download", action="store_true", help="the hub may be asked")
    parser.add_argument("--verbose", action="store_true", help="what the sides print")
    for name in ("--side", "--task", "--folder", "--out"):  # between parent and worker
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--total", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        work(args)
    else:
        print(json.dumps(run(args)))


if __name__ == "__main__":
    main()

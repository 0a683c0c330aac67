"""Is it fast: search, encoding and training, each beside its ceiling and beside torch.

Each side of a comparison is a process (`side.py`), so that neither holds the other's memory; they
take turns, one idle while the other works, and a ratio is taken within a round.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.accelerator import folders
from benchmarks.accelerator.sizes import Sizes

ROOT = pathlib.Path(__file__).parents[2]


class Side:
    """One side's process; `ask()` makes it do its work once."""

    def __init__(self, name: str, task: dict):
        self.name, self.rounds = name, []
        command = [sys.executable, "-m", "benchmarks.accelerator.side", name, json.dumps(task)]
        env = dict(os.environ) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.start = self._answer()

    def ask(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended with {self.process.wait()}")
        return json.loads(line)


def compare(names: list[str], task: dict, rounds: int) -> dict[str, dict]:
    """Times all sides in turn.

    Args:
        names: of the sides; those after the first may be missing on this machine.
        task: what they do.
        rounds: how often; the first call of each side compiles and is not counted.

    Returns:
        For each side the median seconds, all seconds, the peak of the device's memory, and what it
        said of itself; 'missing': why, for one that could not start.
    """
    sides: dict[str, Side] = {}
    found: dict[str, dict] = {}
    for name in names:
        try:
            side = Side(name, task)
            if "missing" in side.start:
                found[name] = side.start
                side.close()
                continue
            side.ask()
            sides[name] = side
        except RuntimeError as error:
            if name == names[0]:
                raise
            found[name] = {"missing": str(error)}
    for number in range(rounds):
        order = list(sides.values())
        for side in order if number % 2 == 0 else order[::-1]:
            side.rounds.append(side.ask())
    for name, side in sides.items():
        side.close()
        seconds = [answer["seconds"] for answer in side.rounds]
        found[name] = side.start | side.rounds[-1]
        found[name] |= {"seconds": statistics.median(seconds), "all_seconds": seconds}
    ours = names[0]
    for name in names[1:]:
        if "all_seconds" in found[name]:
            pairs = zip(found[name]["all_seconds"], found[ours]["all_seconds"], strict=True)
            found[name]["ratio"] = statistics.median(t / o for t, o in pairs)
    return found


def search(sizes: Sizes, place: pathlib.Path) -> dict:
    """Top-k of the whole corpus beside the bare product and torch's product and topk."""
    task = {"kind": "search", "dtype": "bfloat16"}
    task |= {name: getattr(sizes, name) for name in ("passages", "width", "queries", "k")}
    found = compare(["ours", "matmul", "torch"], task, sizes.rounds)
    flops = 2 * sizes.passages * sizes.width * sizes.queries
    return {
        "what": f"{sizes.passages:,} x {sizes.width} bfloat16, {sizes.queries:,} queries, "
        f"k = {sizes.k}",
        "sides": found,
        "tflops": flops / found["ours"]["seconds"] / 1e12,
        "ratios": {"matmul": found["matmul"].get("ratio"), "torch": found["torch"].get("ratio")},
        "goals": {"matmul": 0.6},
    }


def encode(model: str, sizes: Sizes, place: pathlib.Path) -> dict:
    """Texts per second in bfloat16 beside sentence-transformers with its fastest attention."""
    folder = folders.make(place, model, sizes.models[model], sizes.max_length)
    task = {"kind": "encode", "folder": os.fspath(folder), "texts": sizes.texts[model]}
    found = compare(["ours", "torch"], task, sizes.rounds)
    ours = found["ours"]
    return {
        "what": f"{model}: {sizes.texts[model]:,} docstrings, at most {sizes.max_length} tokens, "
        "bfloat16",
        "sides": found,
        "texts_per_s": sizes.texts[model] / ours["seconds"],
        "tokens_per_s": ours["tokens"] / ours["seconds"],
        "tflops": ours["flops"] / ours["seconds"] / 1e12,
        "ratios": {"sentence_transformers": found["torch"].get("ratio")},
        "goals": {"sentence_transformers": 1.3},
    }


def train(model: str, sizes: Sizes, place: pathlib.Path) -> dict:
    """Steps of InfoNCE in bfloat16 beside sentence-transformers' trainer; decoders with LoRA."""
    batch = sizes.training[model]
    folder = folders.make(place, model, sizes.models[model], batch.length)
    task = {
        "kind": "train",
        "folder": os.fspath(folder),
        "queries": batch.queries,
        "length": batch.length,
        "steps": batch.steps,
        "lora": 16 if model.startswith("decoder") else 0,
        "place": os.fspath(place),
    }
    found = compare(["ours", "torch"], task, sizes.rounds)
    ours = found["ours"]
    # Forward, and twice as much backward; the gradients of frozen weights are not computed.
    passes = 2 if task["lora"] else 3
    lengths = [batch.length] * 3 * batch.queries  # queries, and two passages of each
    flops = passes * batch.steps * folders.forward_flops(folder, lengths)
    return {
        "what": f"{model}: {batch.queries} queries, 1 + 1 passages each, {batch.length} tokens, "
        "bfloat16" + (", LoRA of rank 16" if task["lora"] else ""),
        "sides": found,
        "seconds_per_step": ours["seconds"] / batch.steps,
        "tokens_per_s": sum(lengths) * batch.steps / ours["seconds"],
        "tflops": flops / ours["seconds"] / 1e12,
        "ratios": {"sentence_transformers": found["torch"].get("ratio")},
        "goals": {"sentence_transformers": 1.3, "mfu": 0.4},
    }


def sweep_tokens(sizes: Sizes, place: pathlib.Path) -> dict:
    """Seconds of encoding by tokens per step and device: what `step_tokens` should be."""
    from benchmarks.accelerator.side import fastest_attention
    from nvret_jax.models.encoder import Encoder

    folder = folders.make(place, "bert-base", sizes.models["bert-base"], sizes.max_length)
    encoder = Encoder.from_pretrained(
        os.fspath(folder), dtype="bfloat16", attention=fastest_attention()
    )
    texts = folders.texts(sizes.texts["bert-base"])
    seconds = {
        str(budget): _second_call(lambda budget=budget: encoder.encode(texts, token_budget=budget))
        for budget in sizes.token_budgets
    }
    return {"what": "bert-base: seconds by tokens per step and device", "seconds": seconds}


def sweep_attention(sizes: Sizes, place: pathlib.Path) -> dict:
    """Seconds of encoding by implementation and length: what `attention='auto'` should choose."""
    from benchmarks.accelerator.side import fastest_attention
    from nvret_jax.models.encoder import Encoder

    folder = folders.make(place, "bert-base", sizes.models["bert-base"], sizes.max_length)
    texts = [" ".join([text] * 20) for text in folders.texts(sizes.texts["bert-base"] // 2)]
    seconds = {}
    for name in dict.fromkeys(("xla", fastest_attention())):
        encoder = Encoder.from_pretrained(os.fspath(folder), dtype="bfloat16", attention=name)
        for length in sizes.attention_lengths:
            seconds[f"{name}, {length} tokens"] = _second_call(
                lambda length=length, encoder=encoder: encoder.encode(texts, max_length=length)
            )
    return {"what": "bert-base: seconds by attention and length", "seconds": seconds}


def sweep_chunks(sizes: Sizes, place: pathlib.Path) -> dict:
    """Seconds per step by tokens of a chunk: what `chunk_tokens` should be."""
    batch = sizes.training["bert-base"]
    folder = folders.make(place, "bert-base", sizes.models["bert-base"], batch.length)
    task = {"kind": "train", "folder": os.fspath(folder), "place": os.fspath(place), "lora": 0}
    task |= {"queries": batch.queries, "length": batch.length, "steps": batch.steps}
    seconds, memory = {}, {}
    for chunk in sizes.chunk_tokens:
        found = compare(["ours"], task | {"chunk_tokens": chunk}, 1)["ours"]
        seconds[str(chunk)] = found["seconds"] / batch.steps
        memory[str(chunk)] = found["peak_bytes"]
    return {
        "what": "bert-base: seconds per step by tokens of a chunk",
        "seconds": seconds,
        "peak_bytes": memory,
    }


def _second_call(call: Callable[[], object]) -> float:
    """Seconds of the second call: the first one compiles."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

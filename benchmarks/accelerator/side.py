"""One side of a comparison: `python -m benchmarks.accelerator.side NAME TASK`, one process each.

It writes one JSON line when it is ready, then does its work once for every line it reads and writes
what that took. `{"missing": …}` says that a side is not installed here.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.accelerator import folders

SCORES_BYTES = 2**31  # of the product that a ceiling or torch keeps at a time
CHUNK_TOKENS = 16_384  # that torch encodes at a time in training
DRAWN = 16_384  # random vectors at a time
LEARNING_RATE, TEMPERATURE = 2e-5, 0.05


class Channel:
    """The process's end of the pipe."""

    def __init__(self):
        # Answers go to the real stdout; whatever a library prints there goes to stderr.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **answer) -> None:
        self._answers.write(json.dumps(answer) + "\n")

    def asked(self) -> bool:
        """Waits to be asked; False at the end."""
        return bool(sys.stdin.readline())


def main(name: str, task: dict) -> None:
    """Builds a side and times it as often as it is asked to."""
    channel = Channel()
    if name == "torch":
        needed = ["torch", *(["sentence_transformers"] if task["kind"] != "search" else [])]
        for package in needed:
            if importlib.util.find_spec(package) is None:
                channel.say(missing=f"{package} is not installed")
                return
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if task["kind"] == "train":
        {"ours": train_ours, "torch": train_torch}[name](task, channel)
        return
    build = {
        ("ours", "search"): search_ours,
        ("matmul", "search"): search_matmul,
        ("torch", "search"): search_torch,
        ("ours", "encode"): encode_ours,
        ("torch", "encode"): encode_torch,
    }[name, task["kind"]]
    call, facts = build(task)
    channel.say(**facts)
    while channel.asked():
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        channel.say(seconds=seconds, peak_bytes=peak_bytes(name == "torch"))


def peak_bytes(of_torch: bool = False) -> int:
    """Peak of the device's memory; of the process's, where the device is the CPU."""
    if of_torch:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    else:
        import jax

        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- search --------------------------------------------------------------------------------------


def _vectors(task: dict) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, float32, of passages and queries; drawn in parallel, since it takes long."""

    def unit(start: int) -> np.ndarray:
        rng = np.random.default_rng(start)
        x = rng.standard_normal((min(DRAWN, total - start), task["width"]), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x

    total = task["passages"] + task["queries"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        drawn = np.concatenate(list(threads.map(unit, range(0, total, DRAWN))))
    return drawn[: task["passages"]], drawn[task["passages"] :]


def _blocks(task: dict) -> list[tuple[int, int]]:
    size = max(1, min(task["queries"], SCORES_BYTES // (4 * task["passages"])))
    size = 1 << (size.bit_length() - 1)
    return [(start, start + size) for start in range(0, task["queries"], size)]


def search_ours(task: dict) -> tuple[Callable[[], object], dict]:
    """`ExactIndex.search` with the passages on the devices."""
    import jax.numpy as jnp

    from nvret_jax.search.index.exact import ExactIndex

    passages_nd, queries_qd = _vectors(task)
    index = ExactIndex(passages_nd.astype(jnp.dtype(task["dtype"])))
    queries_qd = queries_qd.astype(jnp.dtype(task["dtype"]))
    return lambda: index.search(queries_qd, task["k"]), {"tile": index.tile}


def search_matmul(task: dict) -> tuple[Callable[[], object], dict]:
    """The same products and nothing else: what an exact search cannot beat."""
    import jax
    import jax.numpy as jnp

    passages_nd, queries_qd = (jnp.asarray(x, task["dtype"]) for x in _vectors(task))

    @jax.jit
    def product(queries_qd, passages_nd):
        return jnp.matmul(queries_qd, passages_nd.T, preferred_element_type=jnp.float32)

    def call() -> None:
        for start, stop in _blocks(task):
            product(queries_qd[start:stop], passages_nd).block_until_ready()

    return call, {"blocks": len(_blocks(task))}


def search_torch(task: dict) -> tuple[Callable[[], object], dict]:
    """torch's product and topk, block by block."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, task["dtype"])
    passages, queries = (torch.from_numpy(x).to(device, dtype) for x in _vectors(task))

    @torch.inference_mode()
    def call():
        found = [
            torch.topk(queries[start:stop] @ passages.T, task["k"], dim=1)
            for start, stop in _blocks(task)
        ]
        return [(part.values.cpu(), part.indices.cpu()) for part in found]

    return call, {"device": device}


# --- encode --------------------------------------------------------------------------------------


def fastest_attention(dtype: str = "bfloat16") -> str:
    """The kernel of this platform; 'xla' where there is none."""
    import jax

    return {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend(), "xla")


def encode_ours(task: dict) -> tuple[Callable[[], object], dict]:
    """`Encoder.encode`."""
    from nvret_jax.models.encoder import Encoder

    attention = task.get("attention") or fastest_attention()
    encoder = Encoder.from_pretrained(
        task["folder"], dtype="bfloat16", param_dtype="bfloat16", attention=attention
    )
    texts = folders.texts(task["texts"])
    lengths = [len(ids) for ids in encoder.tokenize(texts)]
    flops = folders.forward_flops(pathlib.Path(task["folder"]), lengths)
    facts = {"attention": attention, "tokens": sum(lengths), "flops": flops}
    return lambda: encoder.encode(texts), facts


def encode_torch(task: dict) -> tuple[Callable[[], object], dict]:
    """`SentenceTransformer.encode` in its fastest attention that this machine has."""
    import torch
    from sentence_transformers import SentenceTransformer

    texts, model, used = folders.texts(task["texts"]), None, ""
    for used in ("flash_attention_2", "sdpa", "eager"):
        try:
            kwargs = {"torch_dtype": torch.bfloat16, "attn_implementation": used}
            model = SentenceTransformer(task["folder"], local_files_only=True, model_kwargs=kwargs)
            break
        except (ImportError, ValueError, RuntimeError):
            continue
    facts = {"attention": used, "device": str(model.device)}
    return lambda: model.encode(texts, batch_size=256, show_progress_bar=False), facts


# --- train ---------------------------------------------------------------------------------------


class InOrder:
    """Random tokens of full length, a batch per step; says when a round of steps is over."""

    seed = 0

    def __init__(self, task: dict, boundary: Callable[[], None], vocabulary: int):
        self._task, self._boundary, self._vocabulary = task, boundary, vocabulary
        self.steps = 10**6  # of the schedule; the process ends long before

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """The rows start:stop of a batch."""
        queries, length = self._task["queries"], self._task["length"]
        rng = np.random.default_rng([self.seed, step])
        draw = [rng.integers(5, self._vocabulary, (queries * n, length), np.int32) for n in (1, 2)]
        ids = np.arange(2 * queries, dtype=np.int32)
        batch = {
            "query_tokens": draw[0],
            "query_lengths": np.full(queries, length, np.int32),
            "passage_tokens": draw[1],
            "passage_lengths": np.full(2 * queries, length, np.int32),
            "passage_ids": ids,
            "positive_ids": ids[::2, None],
        }
        stop = queries if stop is None else stop
        group = {name: len(value) // queries for name, value in batch.items()}
        return {name: v[start * group[name] : stop * group[name]] for name, v in batch.items()}

    def dataset(self, first: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches from a step on."""
        import jax

        for step in range(first, self.steps):
            if step % self._task["steps"] == 0:
                for array in jax.live_arrays():  # a step is dispatched before it is done
                    if not array.is_deleted():
                        array.block_until_ready()
                self._boundary()
            yield self.batch(step, start, stop)


def _boundary(channel: Channel, of_torch: bool) -> Callable[[], None]:
    """What happens between two rounds: answers for the last one and waits for the next."""
    clock: list[float] = []

    def boundary() -> None:
        if clock:
            channel.say(seconds=time.perf_counter() - clock[0], peak_bytes=peak_bytes(of_torch))
        else:
            channel.say()
        if not channel.asked():
            os._exit(0)
        clock[:] = [time.perf_counter()]

    return boundary


def train_ours(task: dict, channel: Channel) -> None:
    """`training.loop.train`, as the stage `train` calls it."""
    from etils import epath

    from nvret_jax import config as config_lib
    from nvret_jax.models.encoder import Encoder, LoraConfig
    from nvret_jax.options import blocks
    from nvret_jax.training import loop
    from nvret_jax.training.options import Training

    lora = LoraConfig(rank=task["lora"], alpha=task["lora"]) if task["lora"] else None
    encoder = Encoder.from_pretrained(
        task["folder"],
        dtype="bfloat16",
        param_dtype="bfloat16" if lora else "float32",
        attention=task.get("attention") or fastest_attention(),
        lora=lora,
    )
    config = config_lib.base().train
    config.update({"batch_size": task["queries"], "steps": 10**6, "num_negatives": 1})
    config.update({"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "warmup": 0.0})
    config.update({"checkpoint_every": 0, "eval_every": 0, "log_every": 1, "dropout": 0.0})
    config.chunk_tokens = task.get("chunk_tokens", 0)
    batches = InOrder(task, _boundary(channel, False), folders.VOCABULARY)
    aside = epath.Path(tempfile.mkdtemp(dir=task["place"]))
    places = loop.Places(aside / "checkpoints", aside / "metrics.jsonl", aside / "tensorboard")
    stage = loop.Stage("train", blocks.read(Training, config), lambda: batches)
    loop.train(encoder, [stage], places)


def train_torch(task: dict, channel: Channel) -> None:
    """`SentenceTransformerTrainer` with such batches; weights in float32 unless adapters train.

    In chunks, as ours: the activations of a whole batch would not fit on one card.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from transformers import TrainerCallback

    kwargs = {"attn_implementation": "sdpa"}
    if task["lora"]:
        kwargs["torch_dtype"] = torch.bfloat16
    model = SentenceTransformer(task["folder"], local_files_only=True, model_kwargs=kwargs)
    model.max_seq_length = task["length"]
    if task["lora"]:
        import peft

        # `SentenceTransformer.add_adapter` would also ask for a version of peft that suits
        # transformers; the adapters themselves are the same.
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapters = peft.LoraConfig(r=task["lora"], lora_alpha=task["lora"], target_modules=names)
        peft.inject_adapter_in_model(adapters, model[0].auto_model)
    joined = " ".join(folders.texts(400)).split(" ")
    words = 2 * task["length"]  # a word is a token or more
    rows = 4 * task["queries"]
    starts = [37 * i % max(1, len(joined) - words) for i in range(3 * rows)]
    texts = [" ".join(joined[start : start + words]) for start in starts]
    columns = {name: texts[i::3] for i, name in enumerate(("anchor", "positive", "negative"))}
    boundary = _boundary(channel, True)

    class Rounds(TrainerCallback):
        def on_train_begin(self, *_, **__):
            boundary()

        def on_step_end(self, arguments, state, control, **_):
            if state.global_step % task["steps"] == 0:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                boundary()

    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(dir=task["place"]),
        per_device_train_batch_size=task["queries"],
        max_steps=10**6,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        warmup_steps=0,
        bf16=torch.cuda.is_available() and not task["lora"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=losses.CachedMultipleNegativesRankingLoss(
            model,
            scale=1 / TEMPERATURE,
            mini_batch_size=max(1, min(task["queries"], CHUNK_TOKENS // task["length"])),
        ),
        callbacks=[Rounds()],
    ).train()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

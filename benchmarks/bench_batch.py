"""One training step of a very large batch: does it fit, and how long does it take?

    python benchmarks/bench_batch.py --queries 65536 --negatives 1 --layers 2 --tokens 16

The whole step on random tokens and weights: encode in chunks, the loss over the global batch by the
ring, gradients, AdamW. Every query is contrasted with every passage of the batch; a matrix of their
scores alone would take `matrix_gib` (with 65,536 queries of 2 passages 32 GiB), and its gradient as
much again. `--method gather` tries just that.

The last line is one JSON object: ratio (the memory allowed over the peak; above 1 it fits),
peak_rss_gib of the process, seconds of compiling and of the step, loss, versions, machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.models.backbones.bert import Bert, BertConfig
from nvret_jax.models.encoder import EmbeddingModel
from nvret_jax.training.batches.examples import to_devices
from nvret_jax.training.loss.losses import Loss
from nvret_jax.training.step import init_optimizer, make_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=65_536)
    parser.add_argument("--negatives", type=int, default=1, help="hard negatives of each query")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--method", default="ring", help="gather or ring")
    parser.add_argument("--chunk-tokens", type=int, default=0)
    parser.add_argument("--limit-gib", type=float, default=6.0)
    arguments = parser.parse_args()

    mesh = mesh_lib.make_mesh()
    batch = _batch(arguments)
    with jax.set_mesh(mesh):
        graph, weights, rest = nnx.split(_model(arguments), nnx.Param, ...)
        optimizer, loss = optax.adamw(1e-4), Loss(method=arguments.method)
        state = init_optimizer(optimizer, loss, weights)
        step_fn = make_step(
            graph,
            optimizer,
            mesh=mesh,
            loss=loss,
            chunk_tokens=arguments.chunk_tokens,
            dropout=False,
            seed=0,
        )
        batch = to_devices(batch, mesh, 0, arguments.queries)
        inputs = weights, state, rest, batch, jnp.uint32(1)
        start = time.perf_counter()
        compiled = step_fn.lower(*inputs).compile()
        compiling = time.perf_counter() - start
        print(f"compiled in {compiling:.1f} s", flush=True)
        start = time.perf_counter()
        _, _, metrics = compiled(*inputs)
        value = float(np.asarray(metrics["loss"]))
        seconds = time.perf_counter() - start

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    passages = arguments.queries * (1 + arguments.negatives)
    print(
        json.dumps(
            {
                "benchmark": "batch",
                "ratio": round(arguments.limit_gib / peak, 3),
                "peak_rss_gib": round(peak, 3),
                "limit_gib": arguments.limit_gib,
                "matrix_gib": round(arguments.queries * passages * 4 / 2**30, 3),
                "compile_seconds": round(compiling, 1),
                "step_seconds": round(seconds, 1),
                "loss": value,
                "negatives": float(np.asarray(metrics["negatives"])),
                "arguments": vars(arguments),
                "jax": importlib.metadata.version("jax"),
                "machine": {
                    "platform": platform.platform(),
                    "cores": len(os.sched_getaffinity(0)),
                    "devices": [str(device) for device in jax.devices()],
                },
            }
        )
    )


def _model(arguments: argparse.Namespace) -> EmbeddingModel:
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.width // 64),
        intermediate_size=4 * arguments.width,
        max_position_embeddings=512,
    )
    backbone = Bert(config, rngs=nnx.Rngs(0))
    return EmbeddingModel(backbone, pooling="mean", normalize=True)


def _batch(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Random texts; every passage is there once."""
    rng = np.random.default_rng(0)
    queries, group = arguments.queries, 1 + arguments.negatives
    passages = queries * group

    def tokens(rows: int) -> np.ndarray:
        return rng.integers(1000, 30_000, (rows, arguments.tokens), dtype=np.int32)

    def lengths(rows: int) -> np.ndarray:
        return np.full(rows, arguments.tokens, np.int32)

    return {
        "query_tokens": tokens(queries),
        "query_lengths": lengths(queries),
        "passage_tokens": tokens(passages),
        "passage_lengths": lengths(passages),
        "passage_ids": np.arange(passages, dtype=np.int32),
        "positive_ids": np.arange(0, passages, group, dtype=np.int32)[:, None],
    }


if __name__ == "__main__":
    main()

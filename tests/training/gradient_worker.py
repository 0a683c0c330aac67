"""Run by test_gradients.py in a process of its own, on eight devices.

    python gradient_worker.py ROOT OUT

One step of every model in ROOT, on every mesh and in every way to encode: its gradients go to
OUT.npz, and what its compiled program exchanges between devices, and what its scans keep, to
OUT.json. '<model>/plain' is the gradient that JAX gives for the whole batch on one device.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.models.encoder import Encoder, LoraConfig
from nvret_jax.plan.hlo import Program
from nvret_jax.training.batches.examples import to_devices
from nvret_jax.training.batches.length_groups import Groups
from nvret_jax.training.loss.losses import Loss, batch_loss
from nvret_jax.training.step import make_step

ROWS, TOKENS = 16, 12
LORA = LoraConfig(rank=2, alpha=4.0)
# name: options of the encoder
MODELS = {
    "bert": {},
    "bert dots": {"remat": "dots"},
    "bert bfloat16": {"dtype": "bfloat16"},
    "decoder lora": {"lora": LORA},
    "decoder": {"remat": "full"},
    "modernbert": {},
}
# What `make_step` is given.
WAYS = {
    "whole": {"chunk_tokens": -1},
    "chunks": {"chunk_tokens": TOKENS},
    "kept": {"chunk_tokens": TOKENS, "recompute": False},
    "groups": {"chunk_tokens": TOKENS},
    "layer": {"chunk_tokens": TOKENS, "gather": "layer"},
}
ONE, DATA, FSDP, TENSOR = (1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)
CASES = {
    "bert": [
        (ONE, "chunks"),
        (ONE, "kept"),
        (DATA, "whole"),
        (DATA, "chunks"),
        (DATA, "groups"),
        (FSDP, "whole"),
        (FSDP, "chunks"),
        (FSDP, "layer"),
        (TENSOR, "chunks"),
        (TENSOR, "kept"),
        (TENSOR, "layer"),
    ],
    "bert dots": [(FSDP, "chunks")],
    "bert bfloat16": [(DATA, "chunks"), (FSDP, "chunks")],
    "decoder lora": [(DATA, "chunks"), (FSDP, "chunks"), (TENSOR, "chunks")],
    "decoder": [(TENSOR, "chunks"), (FSDP, "layer")],
    "modernbert": [(FSDP, "chunks"), (TENSOR, "whole")],
}


def batch_of(mesh):
    rng = np.random.default_rng(0)
    batch = {
        "query_tokens": rng.integers(3, 20, (ROWS, TOKENS)),
        "query_lengths": rng.integers(2, TOKENS // 2 + 1, ROWS),
        "passage_tokens": rng.integers(3, 20, (2 * ROWS, TOKENS)),
        "passage_lengths": rng.integers(2, TOKENS + 1, 2 * ROWS),
        "passage_ids": np.arange(2 * ROWS),
        "positive_ids": 2 * np.arange(ROWS)[:, None],
    }
    batch["query_tokens"][:, 6:] = 0
    batch = {name: value.astype(np.int32) for name, value in batch.items()}
    return to_devices(batch, mesh, 0, ROWS)


# An optimizer that changes nothing and keeps the gradient.
KEEPS = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def flat(grads):
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(grads)}


def plain(encoder, batch, mesh):
    graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)

    def of(trainable):
        model = nnx.merge(graph, trainable, frozen)
        emb = [model(batch[f"{s}_tokens"], batch[f"{s}_lengths"]) for s in ("query", "passage")]
        return batch_loss(Loss(), *emb, batch, mesh=mesh)[0]

    with jax.set_mesh(mesh):
        return flat(jax.jit(jax.grad(of))(trainable))


def exchanged(compiled):
    """(kind, bytes of one run, whether in a loop) of every collective in the program."""
    program = Program(compiled.as_text())
    found = []
    for name, times, _, _ in program.walk():
        for op in program.computations.get(name, {}).values():
            kind = op.kind.removesuffix("-start")
            if kind in ("all-gather", "all-reduce", "reduce-scatter"):
                moved = program._exchanged(op, kind, name, jax.device_count())
                found.append([kind, moved, times > 1, op.attributes[-300:]])
    return found


def kept(jaxpr):
    """Shapes of all that scans keep for a backward pass, on one device but for the tensor axis."""
    jaxpr, found = getattr(jaxpr, "jaxpr", jaxpr), []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan" and not eqn.params["reverse"]:
            # What is stacked has a dimension more than what the body gives; a carry has not.
            outs = zip(eqn.outvars, eqn.params["jaxpr"].jaxpr.outvars, strict=True)
            found += [v.aval.shape for v, one in outs if v.aval.ndim > one.aval.ndim]
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            found += kept(value) if is_jaxpr(value) else []
    return found


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def main(root, out):
    grads, traffic, sizes, residuals, kernels = {}, {}, {}, {}, {}
    for name, ways in CASES.items():
        options = MODELS[name]
        folder = f"{root}/{name.split()[0]}"
        mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        encoder = Encoder.from_pretrained(folder, mesh=mesh, **options)
        expected = plain(encoder, batch_of(mesh), mesh)
        grads |= {f"{name}/plain/{path}": value for path, value in expected.items()}
        sizes[name] = sum(value.size for value in expected.values())
        weights = nnx.to_flat_state(nnx.state(encoder.model))
        kernels[name] = [v[...].shape for path, v in weights if path[-1].endswith("kernel")]
        for shape, way in ways:
            mesh = mesh_lib.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
            encoder = Encoder.from_pretrained(folder, mesh=mesh, **options)
            batch = batch_of(mesh)
            if way == "groups":
                batch["query_groups"] = Groups((1, 1), (6, 8))
                batch["passage_groups"] = Groups((2, 2), (12, 12))
            with jax.set_mesh(mesh):
                graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
                state = KEEPS.init(trainable)
                step_fn = make_step(
                    graph, KEEPS, mesh=mesh, loss=Loss(), dropout=False, seed=0, **WAYS[way]
                )
                args = (trainable, state, frozen, batch, np.uint32(0))
                traced = step_fn.trace(*args)
                compiled = traced.lower().compile()
                _, state, _ = compiled(*args)
                at = f"{name}/{'x'.join(map(str, shape))}/{way}"
                traffic[at], residuals[at] = exchanged(compiled), kept(traced.jaxpr)
                for path, value in nnx.to_flat_state(state):
                    whole = jax.reshard(value[...], jax.P(*[None] * value[...].ndim))
                    grads[f"{at}/{'.'.join(map(str, path))}"] = np.asarray(whole)
            print(at, flush=True)
    np.savez(f"{out}.npz", **grads)
    with open(f"{out}.json", "w") as file:
        found = {"traffic": traffic, "sizes": sizes, "residuals": residuals, "kernels": kernels}
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

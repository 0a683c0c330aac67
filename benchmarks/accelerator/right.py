"""Is it right: each part of the package on this device, beside NumPy in float64 or the CPU.

Every check returns its errors beside the limits they must keep; `ok` says whether they do.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.accelerator import folders
from benchmarks.accelerator.sizes import Sizes

ROOT = pathlib.Path(__file__).parents[2]
FLOAT32, BFLOAT16 = 5e-5, 3e-2  # of unit vectors; of anything else relative to its largest entry


def verdict(errors: dict[str, float], limits: dict[str, float], **more) -> dict:
    """Errors beside their limits; a NaN keeps none."""
    ok = all(errors[name] <= limits[name] for name in limits)
    return {"ok": bool(ok), "errors": errors, "limits": limits, **more}


# --- embeddings ----------------------------------------------------------------------------------


def embeddings(sizes: Sizes, place: pathlib.Path) -> dict:
    """`Encoder.encode` beside a BERT in float64: real MiniLM where its weights are installed."""
    from nvret_jax.errors import InputError
    from nvret_jax.models.encoder import Encoder
    from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve

    try:
        folder, model = pathlib.Path(os.fspath(resolve(DEFAULT_MODEL))), DEFAULT_MODEL
    except InputError:
        model = "random weights of MiniLM's size"
        folder = folders.make(place, "minilm", sizes.models["minilm"], sizes.max_length)
    texts = folders.texts(12)
    texts = [text[: 20 * (i + 1) ** 2] for i, text in enumerate(texts)]  # short and long ones
    errors = {}
    for dtype in ("float32", "bfloat16"):
        encoder = Encoder.from_pretrained(str(folder), dtype=dtype, max_length=128)
        expected = _reference(folder, encoder.tokenize(texts))
        got = np.asarray(encoder.encode(texts), np.float64)
        scale = np.linalg.norm(expected, axis=1).max()
        errors[dtype] = float(np.abs(got - expected).max() / scale)
    return verdict(errors, {"float32": FLOAT32, "bfloat16": BFLOAT16}, model=model)


def _reference(folder: pathlib.Path, tokens: list[np.ndarray]) -> np.ndarray:
    """Mean-pooled BERT in float64, a text at a time; normalised if the folder has that module."""
    import safetensors.numpy
    from scipy.special import erf

    config = json.loads((folder / "config.json").read_text())
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    w = {name.removeprefix("bert."): np.asarray(x, np.float64) for name, x in stored.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def layer(x, at):
        t, heads = len(x), config["num_attention_heads"]
        q, k, v = (
            linear(x, f"{at}.attention.self.{part}").reshape(t, heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(0, 1).reshape(t, -1)
        x = norm(
            x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{at}.intermediate.dense")
        inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
        return norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    out = []
    for ids in tokens:
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(config["num_hidden_layers"]):
            x = layer(x, f"encoder.layer.{i}")
        out.append(x.mean(0))
    out = np.stack(out)
    modules = json.loads((folder / "modules.json").read_text())
    if any(module["type"].endswith(".Normalize") for module in modules):
        out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


# --- attention -----------------------------------------------------------------------------------


def attention(sizes: Sizes, place: pathlib.Path) -> dict:
    """This platform's kernel in bfloat16 beside 'xla' in float32: outputs and gradients.

    The limit is relative to the largest entry; 'xla' in bfloat16 is reported beside it.
    """
    import jax
    import jax.numpy as jnp

    from nvret_jax.models.attention import splash
    from nvret_jax.models.attention.grouped import grouped_attention

    platform = jax.default_backend()
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "splash")
    splash.INTERPRET = platform == "cpu"  # on a CPU the kernel's own arithmetic, interpreted
    heads, shared, width = sizes.heads
    errors, limits, beside = {}, {}, {}
    for tokens in sizes.attention_lengths:
        rng = np.random.default_rng(tokens)
        lengths = jnp.asarray([tokens, max(1, tokens // 3), 1], jnp.int32)
        shapes = [(shared, heads // shared, width), (shared, width), (shared, width)]
        qkv = [rng.standard_normal((3, tokens, *shape)) for shape in shapes]
        real = np.arange(tokens)[None] < np.asarray(lengths)[:, None]

        def both(implementation, dtype, causal, qkv=qkv, lengths=lengths, real=real):
            def loss(*qkv):
                rules = {"causal": causal, "implementation": implementation}
                out = grouped_attention(*qkv, lengths, **rules).astype(jnp.float32)
                out = jnp.where(real[:, :, None, None, None], out, 0.0)
                return jnp.sin(3 * out).sum(), out

            arrays = [jnp.asarray(x, dtype) for x in qkv]
            run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
            (_, out), grads = run(*arrays)
            return [np.asarray(x, np.float32) for x in (out, *grads)]

        for causal in (False, True):
            exact = both("xla", jnp.float32, causal)
            name = f"{tokens} tokens, {'causal' if causal else 'both ways'}"
            for found, implementation in ((errors, kernel), (beside, "xla")):
                got = both(implementation, jnp.bfloat16, causal)
                found[name] = max(
                    float(np.abs(a - b).max() / max(1, np.abs(b).max()))
                    for a, b in zip(got, exact, strict=True)
                )
            limits[name] = BFLOAT16
    splash.INTERPRET = False
    return verdict(errors, limits, kernel=kernel, xla_in_bfloat16=beside)


# --- search --------------------------------------------------------------------------------------


def search(sizes: Sizes, place: pathlib.Path) -> dict:
    """Exact search, resident and streamed, beside a stable sort; ties, ceilings, exclusions.

    Vectors of small whole numbers make every product exact, so that rows must be equal.
    """
    import jax.numpy as jnp

    from nvret_jax.search.index.exact import ExactIndex
    from nvret_jax.search.index.stream import StreamIndex

    rng = np.random.default_rng(0)
    n, q, d, k = 20_011, 96, 32, 50
    passages = rng.integers(-3, 4, (n, d)).astype(np.float32)
    queries = rng.integers(-3, 4, (q, d)).astype(np.float32)
    exact = queries.astype(np.float64) @ passages.T.astype(np.float64)
    ceiling = np.quantile(exact, 0.99, axis=1).round().astype(np.float32)
    exclude = [sorted(rng.choice(n, 5, replace=False).tolist()) for _ in range(q)]
    errors = {}
    for rule, ceilings, excluded in (("all", None, None), ("ceiling", ceiling, exclude)):
        scores = exact.copy()
        if ceilings is not None:
            scores[scores >= ceilings[:, None]] = -np.inf
            for row, rows in enumerate(excluded):
                scores[row, rows] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for dtype in (jnp.float32, jnp.bfloat16):
            stored = passages.astype(dtype)
            for kind, make in (
                ("resident", ExactIndex),
                ("streamed", functools.partial(StreamIndex, tile=4096)),
            ):
                asked = {"ceiling_q": ceilings, "exclude": excluded}
                _, got = make(stored).search(queries.astype(dtype), k, **asked)
                name = f"{kind}, {np.dtype(dtype).name}, {rule}"
                errors[name] = float((np.asarray(got) != rows).sum())
    return verdict(errors, dict.fromkeys(errors, 0.0), unit="rows that differ")


# --- loss ----------------------------------------------------------------------------------------


def losses(sizes: Sizes, place: pathlib.Path) -> dict:
    """Gathered and ring losses with gradients on all devices, beside one device of the CPU."""
    import jax

    from nvret_jax import mesh as mesh_lib
    from nvret_jax.training.loss.losses import Loss, batch_loss

    rng = np.random.default_rng(0)
    rows, group, width = 48, 3, 64
    unit = [rng.standard_normal((count, width)) for count in (rows, rows * group)]
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in unit]
    ids = rng.integers(0, 90, rows * group).astype(np.int32)
    batch = {"passage_ids": ids, "positive_ids": ids.reshape(rows, group)[:, :1]}
    options = {"terms": ("query_to_passage", "passage_to_query", "query_to_query")}

    def run(mesh, method):
        loss = Loss(method=method, **options)

        def put(x):
            axes = (None,) * (x.ndim - 1)
            return jax.device_put(x, mesh_lib.sharding(mesh, "batch", *axes))

        def of(queries, passages, batch):
            return batch_loss(loss, queries, passages, batch, mesh=mesh)[0]

        with jax.set_mesh(mesh):
            arrays = jax.tree.map(put, (*unit, batch))
            value, grads = jax.jit(jax.value_and_grad(of, (0, 1)))(*arrays)
            return [np.asarray(x) for x in (value, *grads)]

    cpu = mesh_lib.make_mesh(devices=jax.local_devices(backend="cpu")[:1])
    shards = max(s for s in range(1, jax.device_count() + 1) if rows % s == 0)
    here = mesh_lib.make_mesh(devices=jax.devices()[:shards])
    errors = {}
    for method in ("gather", "ring"):
        expected, got = run(cpu, "gather"), run(here, method)
        for name, a, b in zip(("loss", "queries", "passages"), got, expected, strict=True):
            error = np.abs(a - b).max() / np.abs(b).max()
            errors[f"{method}, {name}"] = float(error)
    return verdict(errors, dict.fromkeys(errors, FLOAT32), devices=shards)


# --- training ------------------------------------------------------------------------------------


def training(sizes: Sizes, place: pathlib.Path) -> dict:
    """20 steps here and on the CPU; and one that is killed, started again, and ends as the first.

    Same batches, same weights, float32. Three runs of the command go side by side.
    """
    here, cpu, killed = (pathlib.Path(tempfile.mkdtemp(dir=place)) for _ in range(3))
    running = [_start(here, None), _start(cpu, "cpu")]
    process = _start(killed, None)
    while process.poll() is None and len(_metrics(killed, "loss")) < 8:
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    steps, died = len(_metrics(killed, "loss")), process.returncode == -signal.SIGKILL
    for one in running:
        _finish(one)
    _finish(_start(killed, None))
    losses = {name: _metrics(folder, "loss") for name, folder in (("here", here), ("cpu", cpu))}
    pairs = list(zip(losses["here"], losses["cpu"], strict=True))
    relative = [abs(a - b) / b for a, b in pairs]
    # Rounding grows with the steps, since each starts from the weights of the one before.
    errors = {"first step": relative[0], "any of 20 steps": max(relative)}
    errors["resumed, steps that differ"] = float(
        sum(a != b for a, b in zip(losses["here"], _metrics(killed, "loss"), strict=True))
    )
    limits = {"first step": 1e-5, "any of 20 steps": 1e-3, "resumed, steps that differ": 0.0}
    out = verdict(errors, limits, killed_after_steps=steps)
    return out | {"ok": out["ok"] and died}


def _start(workdir: pathlib.Path, platform: str | None) -> subprocess.Popen:
    """Mines and trains a tiny model on docstrings: 20 steps, a checkpoint every 5."""
    command = [sys.executable, "-m", "nvret_jax.main", f"--workdir={workdir}"]
    command += [f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"]
    values = {
        "teacher.model": "tiny:bert",
        "student.model": "tiny:bert",
        "train.steps": 20,
        "train.batch_size": 16,
        "train.checkpoint_every": 5,
        "train.eval_every": 0,
        "train.keep_best": False,
        "search.backend": "device",
        "distributed.mode": "off",
    }
    command += [f"--config.{key}={value}" for key, value in values.items()]
    command += ["--stages=embed,search,mine,train"]
    env = dict(os.environ) | ({"JAX_PLATFORMS": platform} if platform else {})
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {output[-2000:]}")


def _metrics(workdir: pathlib.Path, name: str) -> list[float]:
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    values = []
    for line in lines:
        try:
            values.append(json.loads(line).get(name))
        except ValueError:
            continue  # the line that is being written
    return [value for value in values if value is not None]

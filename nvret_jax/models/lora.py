"""LoRA (arXiv 2106.09685): a frozen kernel W plus a trained A·B of low rank.

    y = x·W + scale · dropout(x)·A·B          scale = alpha / rank

Adapters are weights of the layer they belong to, named after the kernel (`query_kernel` gets
`query_lora_a` [D, r] and `query_lora_b` [r, N, G, K]), stacked and scanned with it, of the type
`nnx.LoRAParam` and in float32 for any kernel dtype. A is initially random, B zero, so that at first
adapters change nothing. `merged` adds them into the kernels, for an export; `save` and `load` write
and read only the adapters, in PEFT's format.

Targets are named as in PEFT, by the modules of the Hugging Face model: the last parts of a name
('q_proj', 'mlp.down_proj', BERT's 'query' and 'dense'), which adapt that module in every layer;
whole names ('encoder.layer.0.attention.self.query'), which must include all layers, because layers
are stacked; or 'all-linear' for every kernel of the layers.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import products
from nvret_jax.models.backbones.layer import PRODUCT, Options, dropout, in_use
from nvret_jax.models.options import ALL, LoraConfig
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.folder import Fields, inside, read_object, shown

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's prefix of the names of wrapped modules
_PLACE = 16  # dropout: the first `place` used for adapters


def draws(layers: nnx.Module, options: Options) -> bool:
    """Whether a forward pass in training drops anything, here or in the adapters."""
    config = getattr(layers, "lora", None)
    return options.dropout > 0.0 or (config is not None and config.dropout > 0.0)


def product(
    layer: Any,
    einsum: str,
    x: jax.Array,
    name: str,
    *,
    options: Options,
    keys_b: jax.Array | None = None,
    **kwargs: Any,
) -> jax.Array:
    """x · kernel (+ bias) (+ adapter), for a layer whose weights are named `{name}_kernel`, ….

    Args:
        layer: a `Weights` module.
        einsum: of x and the kernel; the dimensions they share are the kernel's first.
        x: cast to the compute dtype.
        keys_b: dropout keys of the layer, for the adapter's input.
        **kwargs: to `jnp.einsum` (out_sharding).

    Returns:
        In `options.inner_dtype`.
    """
    run = functools.partial(
        products.product, precision=options.precision, preferred_element_type=options.inner_dtype
    )
    kernel = layer._use(f"{name}_kernel", options.dtype)
    out = checkpoint_name(run(einsum, x.astype(options.dtype), kernel, **kwargs), PRODUCT)
    if hasattr(layer, f"{name}_bias"):
        out = out + layer._use(f"{name}_bias", options.inner_dtype)
    if not hasattr(layer, f"{name}_lora_a"):
        return out
    config: LoraConfig = layer.lora
    place = _PLACE + sorted(layer.AXES).index(f"{name}_kernel")
    x = dropout(x, keys_b, place, config.dropout).astype(options.dtype)
    operands, out_letters = einsum.split("->")
    x_letters, kernel_letters = operands.split(",")
    shared = "".join(letter for letter in kernel_letters if letter in x_letters)
    made = kernel_letters[len(shared) :]
    batch = "".join(letter for letter in x_letters if letter not in shared)
    with jax.named_scope("lora"):
        inner = run(
            f"{x_letters},{shared}r->{batch}r",
            x,
            _use(layer, f"{name}_lora_a", options.dtype),
            out_sharding=mesh_lib.spec("batch", *(None,) * len(batch)),
        )
        extra = run(
            f"{batch}r,r{made}->{out_letters}",
            inner.astype(options.dtype),
            _use(layer, f"{name}_lora_b", options.dtype),
            **kwargs,
        )
        return out + extra * jnp.asarray(config.scale, out.dtype)


def _use(layer: Any, name: str, dtype: Any) -> jax.Array:
    value = getattr(layer, name)[...].astype(dtype)
    return value if name in layer.whole else in_use(value, axes(layer.AXES, name))


def axes(declared: Mapping[str, tuple[str | None, ...]], name: str) -> tuple[str | None, ...]:
    """Logical axes of a layer's weight: an adapter has those of its kernel, r has none."""
    if name in declared:
        return declared[name]
    stem, side = name[: -len("_lora_a")], name[-1]
    kernel = declared[f"{stem}_kernel"]
    inputs = 1 if kernel[0] == "embed" else len(kernel) - 1
    return (*kernel[:inputs], None) if side == "a" else (None, *kernel[inputs:])


def _kernels(table: weights.Table) -> dict[str, tuple[str, weights.Transform]]:
    """HF module, with {layer} -> (stem of our kernel, transform), for kernels of the layers."""
    return {
        pattern.removesuffix(".weight"): (path[-1].removesuffix("_kernel"), transform)
        for pattern, (path, transform) in table.items()
        if path[0] == "layers" and transform.inputs is not None
    }


def matches(table: weights.Table, targets: tuple[str, ...], layers: int) -> dict[str, str]:
    """HF module -> stem of our kernel, for the targets of a model with this table.

    Args:
        table: its conversion.
        targets: of a `LoraConfig`.
        layers: their number.

    Raises:
        InputError: a target matches nothing (names the modules), or modules of some layers only.
    """
    kernels = _kernels(table)
    found: dict[str, set[int]] = {module: set() for module in kernels}
    missing = []
    for target in targets:
        hits = [
            (module, layer)
            for module in kernels
            for layer in range(layers)
            if _meant(target, module.format(layer=layer))
        ]
        for module, layer in hits:
            found[module].add(layer)
        if not hits:
            missing.append(repr(target))
    if missing:
        there = ", ".join(sorted({module.split("}.")[-1] for module in kernels}))
        raise InputError(
            f"lora targets {', '.join(missing)} match nothing in this model; its modules: {there} "
            f"(their last parts suffice), or {ALL!r}"
        )
    for module, hit in found.items():
        if hit and (lacking := sorted(set(range(layers)) - hit)):
            raise InputError(
                f"lora targets adapt {module} in {len(hit)} of {layers} layers; layers are "
                f"stacked and must all be adapted: add layer {lacking[0]}, or give only the "
                f"name's last part "
                f"({module.split('}.')[-1]!r})"
            )
    return {module: stem for module, (stem, _) in kernels.items() if found[module]}


def _meant(target: str, name: str) -> bool:
    """Whether a target refers to the module `name`: as in PEFT, or with a head's prefix."""
    return target in (ALL, name) or name.endswith(f".{target}") or target.endswith(f".{name}")


def attach(backbone: Any, config: LoraConfig, table: weights.Table, *, rngs: nnx.Rngs) -> None:
    """Gives `backbone` adapters, in place.

    Args:
        backbone: with stacked `layers`; may be abstract (under `nnx.eval_shape`).
        config: InputError from `matches` if its targets do not exist.
        table: the backbone's conversion, which has the modules' names.
        rngs: for A, uniform within ±1 / sqrt(fan-in), as in PEFT.
    """
    layers = backbone.layers
    kernels = _kernels(table)
    layers.lora = config
    count = jax.tree.leaves(nnx.state(layers))[0].shape[0]
    for module, stem in matches(table, config.targets, count).items():
        shape = getattr(layers, f"{stem}_kernel").shape
        inputs = kernels[module][1].inputs
        split = 1 + inputs if inputs > 0 else len(shape) + inputs
        a_shape, b_shape = (*shape[:split], config.rank), (shape[0], config.rank, *shape[split:])
        setattr(layers, f"{stem}_lora_a", nnx.LoRAParam(_random(rngs.params(), a_shape)))
        setattr(layers, f"{stem}_lora_b", nnx.LoRAParam(jnp.zeros(b_shape, jnp.float32)))


def _random(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The initial A [L, *in, r]."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:-1]))
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def initial(
    shapes: Mapping[weights.Path, tuple[int, ...]],
    axes: Mapping[weights.Path, tuple[str | None, ...]],
    mesh: Mesh,
    *,
    seed: int,
) -> dict[weights.Path, jax.Array]:
    """New adapters, made in their shards; the same on any mesh. Arguments as in `load`."""
    arrays = {}
    for number, path in enumerate(sorted(p for p in shapes if "_lora_" in p[-1])):
        target = mesh_lib.sharding(mesh, *axes[path])
        key = jax.random.fold_in(jax.random.key(seed), number)
        make = _random if path[-1].endswith("_a") else (lambda key, shape: jnp.zeros(shape))
        make = jax.jit(make, static_argnums=1, out_shardings=target)
        with jax.set_mesh(mesh):
            arrays[path] = make(key, shapes[path])
    return arrays


def trainable(path: tuple[Any, ...], variable: Any) -> bool:
    """A filter for `nnx.split`: the adapters, and weights outside the backbone (a pooling).

    For a model without adapters everything is trainable: use `nnx.Param`.
    """
    return isinstance(variable, nnx.LoRAParam) or path[0] != "backbone"


@functools.partial(jax.jit, static_argnums=(3, 4))
def _added(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, inputs: int) -> jax.Array:
    letters = "uvwxyz"[: kernel.ndim - 1]
    einsum = f"{letters[:inputs]}r,r{letters[inputs:]}->{letters}"

    def one(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel, a, b = layer
        delta = jnp.einsum(einsum, a, b, precision=jax.lax.Precision.HIGHEST)
        return kernel.astype(jnp.float32) + scale * delta

    return jax.lax.map(one, (kernel, a, b))


def merged(backbone: Any, path: weights.Path) -> jax.Array:
    """A weight of a backbone, with its adapter added, if it has one.

    The sum is float32 for any stored dtype of the kernel: an adapter's change is often smaller than
    the rounding of a narrow kernel, and should be rounded only once, to the dtype it is written in.
    All processes must call it, under `jax.set_mesh`.

    Args:
        backbone: with or without adapters.
        path: of the weight in its state.
    """
    module, layers = backbone, getattr(backbone, "layers", None)
    for name in path[:-1]:
        module = getattr(module, name)
    value = getattr(module, path[-1])[...]
    stem = path[-1].removesuffix("_kernel")
    if module is not layers or not hasattr(layers, f"{stem}_lora_a"):
        return value
    a, b = (getattr(layers, f"{stem}_lora_{side}")[...] for side in "ab")
    return _added(value, a, b, layers.lora.scale, a.ndim - 2)


def rounding(backbone: Any, table: weights.Table, dtype: str) -> tuple[float, float]:
    """The effect of an export in `dtype` on the adapters; all processes call it, under `set_mesh`.

    Returns:
        how much adapters change their weights, |dW| / |W|; and how much of that the rounding of the
        sums loses, |error| / |dW| (Frobenius norms over all of them).
    """
    config = getattr(backbone.layers, "lora", None)
    sums = np.zeros(3)
    layers = jax.tree.leaves(nnx.state(backbone.layers))[0].shape[0]
    stems = () if config is None else matches(table, config.targets, layers).values()
    for stem in sorted(set(stems)):
        path = ("layers", f"{stem}_kernel")
        kernel = getattr(backbone.layers, path[1])[...]
        sums += np.asarray(_squares(kernel, merged(backbone, path), dtype))
    weight, change, error = np.sqrt(sums)
    return float(change / weight) if weight else 0.0, float(error / change) if change else 0.0


@functools.partial(jax.jit, static_argnums=2)
def _squares(kernel: jax.Array, merged: jax.Array, dtype: str) -> jax.Array:
    """float32 [3], of the kernel, of the addition, and of the rounding error in `dtype`."""
    kernel = kernel.astype(jnp.float32)
    lost = merged.astype(dtype).astype(jnp.float32) - merged
    found = jnp.stack([jnp.square(x).sum() for x in (kernel, merged - kernel, lost)])
    return jax.reshard(found, jax.sharding.PartitionSpec())


def adapter_table(table: weights.Table, targets: tuple[str, ...], layers: int) -> weights.Table:
    """The conversion between our adapters and PEFT's: A [r, in], B [out, r]."""
    kernels = _kernels(table)
    out = {}
    for module, stem in matches(table, targets, layers).items():
        transform = kernels[module][1]
        b = transform if transform.inputs == 1 else weights.LINEAR
        out[f"{module}.lora_A.weight"] = (("layers", f"{stem}_lora_a"), weights.FROM_HEADS)
        out[f"{module}.lora_B.weight"] = (("layers", f"{stem}_lora_b"), b)
    return out


def read_config(folder: epath.PathLike, ignored: tuple[str, ...] = ()) -> LoraConfig:
    """PEFT's adapter_config.json.

    Args:
        folder: of the adapter.
        ignored: patterns of the model's keys that do not affect an embedding: targets among them
            are left out (PEFT's 'all-linear' adapts a BERT's pooler, too).

    Raises:
        InputError: it is not a plain LoRA (DoRA, other ranks for some modules, biases, …); names
            every such setting.
    """
    path = inside(folder, CONFIG_FILE)
    if not path.exists():
        raise InputError(
            f"{path}: no such file; an adapter is a folder with this file and {WEIGHTS_FILE}"
        )
    config = read_object(folder, CONFIG_FILE)
    wrong = [
        f"{name}={shown(config[name])}"
        for name, plain in (
            ("peft_type", "LORA"),
            ("bias", "none"),
            ("use_dora", False),
            ("fan_in_fan_out", False),
            ("lora_bias", False),
            ("rank_pattern", {}),
            ("alpha_pattern", {}),
            ("modules_to_save", []),
            ("layers_to_transform", []),
            ("exclude_modules", []),
            ("target_parameters", []),
            ("layer_replication", []),
            ("trainable_token_indices", []),
            ("eva_config", None),
            ("corda_config", None),
            ("use_qalora", False),
            ("alora_invocation_tokens", []),
            ("arrow_config", None),
        )
        if config.get(name) not in (None, plain, [], {})
    ]
    targets = config.get("target_modules")
    if isinstance(targets, str):
        targets = [targets]
        if targets != [ALL]:
            wrong.append(f"target_modules={shown(targets[0])} (a pattern; give a list)")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        wrong.append(f"target_modules={shown(targets)} (expected a list of strings)")
    if wrong:
        raise InputError(f"{path}: not supported: {'; '.join(wrong)}")
    idle = re.compile("|".join(ignored) or "(?!)")
    targets = [t for t in targets if not idle.fullmatch(f"{t}.weight")] or targets
    fields = Fields(config)
    found = LoraConfig(
        rank=fields.integer("r", 8, high=1 << 16),
        alpha=fields.number("lora_alpha", 8, high=1e6),
        dropout=fields.number("lora_dropout", 0.0, low=-1e-9, high=0.999),
        targets=tuple(sorted(targets)),
        rslora=fields.flag("use_rslora"),
    )
    fields.check(path)
    return found


def load(
    folder: epath.PathLike,
    shapes: Mapping[weights.Path, tuple[int, ...]],
    axes: Mapping[weights.Path, tuple[str | None, ...]],
    mesh: Mesh,
    *,
    table: weights.Table,
    prefixes: tuple[str, ...],
    ignored: tuple[str, ...],
    targets: tuple[str, ...],
) -> dict[weights.Path, jax.Array]:
    """Reads PEFT's adapter_model.safetensors into shards; arguments as in `weights.load`.

    Args:
        shapes, axes: of a backbone with adapters attached.
        table, prefixes, ignored: the backbone's.
        targets: of the adapter.

    Raises:
        InputError: keys missing, unknown or misshaped, all in one message.
    """
    layers = next(shape[0] for path, shape in shapes.items() if path[0] == "layers")
    return weights.load(
        folder,
        shapes,
        axes,
        mesh,
        dtype="float32",
        table=adapter_table(table, targets, layers),
        prefixes=(*(_PREFIX + prefix for prefix in prefixes), ""),
        ignored=tuple(f"({re.escape(_PREFIX)})?{pattern}" for pattern in ignored),
        file=WEIGHTS_FILE,
    )


def _named(table: weights.Table, targets: tuple[str, ...], layers: int) -> list[str]:
    """The targets for PEFT: last parts of names, unless these also match other modules."""
    modules = matches(table, targets, layers)
    short = sorted({module.split("}.")[-1] for module in modules})
    if set(matches(table, tuple(short), layers)) == set(modules):
        return short
    return sorted(module.format(layer=layer) for module in modules for layer in range(layers))


def save(
    backbone: Any, folder: epath.PathLike, *, table: weights.Table, base: str | None = None
) -> None:
    """Writes a backbone's adapters in PEFT's format; all processes call it, one writes.

    Args:
        backbone: with adapters.
        folder: made if missing.
        table: the backbone's.
        base: name or path of the model they belong to, for `base_model_name_or_path`.

    Raises:
        InputError: the backbone has no adapters.
    """
    config = getattr(backbone.layers, "lora", None)
    if config is None:
        raise InputError(f"{folder}: this model has no adapters to save")
    layers = jax.tree.leaves(nnx.state(backbone.layers))[0].shape[0]
    tensors = weights.to_hf(backbone, table=adapter_table(table, config.targets, layers))
    if not mesh_lib.is_main():
        return
    from safetensors.numpy import save as to_bytes

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + k: np.asarray(v, np.float32) for k, v in tensors.items()}
    (folder / WEIGHTS_FILE).write_bytes(to_bytes(tensors, metadata={"format": "pt"}))
    content = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": None if base is None else os.fspath(base),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _named(table, config.targets, layers),
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")

"""Encodes a batch, and computes its gradient, with memory and traffic independent of its size.

Texts are encoded in chunks: only embeddings are kept between the forward and the backward pass,
and each chunk is encoded once more for its gradient. This is GradCache (Gao et al. 2021): the loss
still sees the whole global batch, whatever the chunk. On a CPU a chunk that fits the cache also
makes a step faster than encoding the batch at once, recomputation included.

If a batch has groups (`length_groups.Groups`), short texts are encoded at a smaller width than long
ones.

**Gradients are reduced once per step.** Both passes are programs of one device (`jax.shard_map`
over the axes of the batch): each sums up, in float32, the gradients of its own texts of both sides,
in one sum of the size of the trained weights; then these sums are reduced over the mesh. By
default, JAX would reduce for every chunk, layer and group. A chunk's gradient of a kernel has the
dtype of the products before it is added.

**Weights cut along fsdp** are gathered once per step if they are trained, because the sum of their
gradients is whole anyway until it is reduced to shards again (`FSDP_STEP`). If these do not fit,
`FSDP_LAYER` gathers them layer by layer and reduces each layer's gradient at once, per chunk: the
most traffic and the least memory; `fsdp_way` chooses. Weights that are not trained are always
gathered layer by layer, and never kept for the backward pass (`blocks.scan_layers`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.models.backbones.blocks import TABLE
from nvret_jax.models.backbones.layer import gathered
from nvret_jax.training.batches.length_groups import Groups


class Texts(NamedTuple):
    """Some texts: int32 tokens [N, T] and lengths [N]; dropout keys and tokens not pooled, or None.

    Keys are raw data (`jax.random.key_data`), so that everything can be sliced and stacked.
    """

    tokens: jax.Array
    lengths: jax.Array
    keys: jax.Array | None = None
    unpooled: jax.Array | None = None


# When weights that are trained and cut along fsdp are gathered, and their gradients reduced.
FSDP_STEP, FSDP_LAYER = "step", "layer"
# The share of a device's memory that these weights and the sums of their gradients may take while
# whole. The rest is for activations, the optimizer and everything sharded.
_WHOLE_SHARE = 1 / 3

# (trained weights, other weights, texts) -> float32 embeddings [N, D] or [N, T, D]
Encode = Callable[[Any, Any, Texts], jax.Array]


def chunk_budget(tokens: int, platform: str = "") -> int:
    """Tokens a device encodes at a time for the config value `tokens`; -1: all of them.

    Args:
        tokens: 0: as the platform can take.
        platform: 'cpu', 'gpu' or 'tpu'; '': this process's.
    """
    return platforms.limits(platform).chunk_tokens if tokens == 0 else tokens


def chunk_rows(tokens: int, width: int, rows: int) -> int:
    """Sequences per chunk on one device: as few chunks as the budget allows, all of one size.

    If they do not divide the rows (such as 7 per chunk of 8 × 127), the last chunk is not full.

    Args:
        tokens: budget; 0: chosen for the device; -1: no chunks.
        width: tokens per sequence.
        rows: sequences this device has.
    """
    tokens = chunk_budget(tokens)
    if tokens < 0:
        return rows
    chunks = -(-rows // max(1, tokens // width))
    return -(-rows // chunks)


def encode_sides(
    encode: Encode,
    learned: Any,
    fixed: Any,
    sides: Sequence[Texts],
    *,
    chunk_tokens: int,
    mesh: Mesh,
    groups: Sequence[Groups | None] | None = None,
    recompute: bool = True,
    dtype: Any = None,
    fsdp: str = FSDP_STEP,
) -> tuple[jax.Array, ...]:
    """Embeds all sides of a batch, chunk by chunk; call it within `jax.jit`.

    Args:
        encode: embeds one device's part of some texts. It gets the weights `whole_weights` whole,
            kernels in `dtype`, and a gradient only through `learned`.
        learned, fixed: its weights, sharded as stored.
        sides: texts, each side's split over the batch axis.
        chunk_tokens: see `chunk_rows`.
        mesh: of all arrays.
        groups: for each side, widths that fit every device's own texts; None: all at width T.
        recompute: with several chunks, only embeddings are kept for the backward pass, and every
            chunk is encoded again. False: everything the model keeps is kept, for all chunks.
        dtype: of the products; kernels are cast to it once. None: their own.
        fsdp: `FSDP_STEP` or `FSDP_LAYER`.

    Returns:
        The results of `encode` for each side, split over the batch axis, in the order of its texts.
        The gradient of `learned` has its dtype and layout; it is summed and reduced in float32.
    """
    plans = []
    for texts, plan in zip(sides, groups or [None] * len(sides), strict=True):
        count, width = texts.tokens.shape
        local = count // mesh_lib.shards(mesh, "batch")
        plan = plan or Groups((local,), (width,))
        assert sum(plan.rows) == local, f"groups of {plan.rows} rows, but a device has {local}"
        plans.append(plan)
    budget = chunk_budget(chunk_tokens, platforms.of(mesh))
    device = _Device(encode, tuple(plans), budget, recompute, dtype, fsdp)
    return _over_mesh(device, mesh)(learned, fixed, tuple(sides))


def whole_weights(learned: Any, fsdp: str) -> list[tuple[str, ...]]:
    """Paths of the weights that are stored sharded along fsdp and passed whole to `encode`."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(learned):
        names = _names(path)
        if fsdp == FSDP_STEP and TABLE not in names and _cut(_at_rest(leaf)) is not None:
            found.append(names)
    return found


def fsdp_way(gather: str, learned: Any, dtype: Any, memory_bytes: int) -> str:
    """`FSDP_STEP` or `FSDP_LAYER` for the config value `gather`; call it while tracing.

    Args:
        gather: of `options.GATHER`.
        learned: the trained weights.
        dtype: of the products; None: that of the weights.
        memory_bytes: of a device; 0: unknown, assumed to be enough.
    """
    if gather != "auto":
        return gather
    whole = set(whole_weights(learned, FSDP_STEP))
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(learned):
        if _names(path) in whole:
            others = _without(_at_rest(leaf), mesh_lib.RULES["batch"])
            mesh = jax.sharding.get_abstract_mesh()
            parts = math.prod(mesh.shape[a] for entry in others for a in _axes_of(entry))
            used = jnp.dtype(dtype if dtype is not None else leaf.dtype).itemsize
            total += (4 + used) * leaf.size // parts
    fits = not memory_bytes or total <= _WHOLE_SHARE * memory_bytes
    return FSDP_STEP if fits else FSDP_LAYER


class _Device:
    """Both passes on one device, for its own texts, inside `shard_map`."""

    def __init__(self, encode, plans, chunk_tokens, recompute, dtype, fsdp):
        self.encode, self.plans, self.dtype, self.fsdp = encode, plans, dtype, fsdp
        self.sizes = [
            [
                chunk_rows(chunk_tokens, width, rows)
                for rows, width in zip(plan.rows, plan.widths, strict=True)
            ]
            for plan in plans
        ]
        self.again = [
            recompute and (len(plan.rows) > 1 or sizes[0] < plan.rows[0])
            for plan, sizes in zip(plans, self.sizes, strict=True)
        ]
        self.kept: list[Any] = []  # structures of the values that `forward` keeps

    def used(self, weights: Any, cuts: Any = None) -> Any:
        """The weights for `encode`, from those of this device."""

        def use(path, leaf, cut=None):
            if self.dtype is not None and "".join(_names(path)[-1:]).endswith("kernel"):
                leaf = leaf.astype(self.dtype)
            return leaf if cut is None else gathered(leaf, cut, mesh_lib.RULES["embed"])

        if cuts is None:
            return jax.tree_util.tree_map_with_path(use, weights)
        leaves, tree = jax.tree_util.tree_flatten_with_path(weights)
        return tree.unflatten([use(*leaf, cut) for leaf, cut in zip(leaves, cuts, strict=True)])

    def forward(self, cuts, learned, fixed, sides):
        """Embeddings of each side, and arrays that the backward pass needs."""
        learned, fixed = self.used(learned, cuts), self.used(fixed)
        out, arrays, self.kept = [], [], []
        for texts, plan, sizes, again in zip(
            sides, self.plans, self.sizes, self.again, strict=True
        ):
            order = _order(texts, plan)
            stacks = self.stacks(_sorted(texts, order), plan, sizes)
            run = functools.partial(_embedded, self.encode, fixed, tuple(stacks))
            if again:
                embedded = run(learned)
            else:
                embedded, pull = jax.vjp(run, learned)
                leaves, tree = jax.tree.flatten(pull)
                arrays.append([leaf[None] for leaf in leaves])
                self.kept.append(tree)
            rows = [
                e.reshape(-1, *e.shape[2:])[:n] for e, n in zip(embedded, plan.rows, strict=True)
            ]
            emb = rows[0] if len(rows) == 1 else jnp.concatenate(rows)
            out.append(emb if order is None else emb[jnp.argsort(order)])
        return tuple(out), arrays

    def backward(self, cuts, learned, fixed, sides, arrays, cotangents):
        """Gradients of `learned` by this device's texts: float32, each with a leading axis of 1."""
        learned, fixed = self.used(learned, cuts), self.used(fixed)
        total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), learned)
        arrays, kept = iter(arrays), iter(self.kept)

        def add(total, chunk):
            texts, cotangent = chunk
            _, pull = jax.vjp(lambda weights: self.encode(weights, fixed, texts), learned)
            return _plus(total, pull(cotangent)[0]), None

        for texts, cotangent, plan, sizes, again in zip(
            sides, cotangents, self.plans, self.sizes, self.again, strict=True
        ):
            order = _order(texts, plan)
            pieces = self.stacks(_sorted(cotangent, order), plan, sizes, fill=0.0)
            if not again:
                pull = jax.tree.unflatten(next(kept), [leaf[0] for leaf in next(arrays)])
                total = _plus(total, pull(tuple(pieces))[0])
                continue
            stacks = self.stacks(_sorted(texts, order), plan, sizes)
            for chunks in zip(stacks, pieces, strict=True):
                total, _ = jax.lax.scan(add, total, chunks)
        return jax.tree.map(lambda leaf: leaf[None], total)

    def stacks(self, tree: Any, plan: Groups, sizes: Sequence[int], fill: float | None = None):
        """[rows, …] -> [chunks, size, …] for each group, its tokens cut to its width.

        Missing rows of the last chunk are copies of the group's first, or `fill`.
        """
        found, first = [], 0
        for rows, width, size in zip(plan.rows, plan.widths, sizes, strict=True):
            missing = -rows % size

            def stack(x, first=first, rows=rows, size=size, missing=missing):
                x = x[first : first + rows]
                if missing:
                    last = x[:1] if fill is None else jnp.full_like(x[:1], fill)
                    x = jnp.concatenate([x, jnp.broadcast_to(last, (missing, *x.shape[1:]))])
                return x.reshape(-1, size, *x.shape[1:])

            part = jax.tree.map(stack, tree)
            if isinstance(part, Texts):
                part = part._replace(tokens=part.tokens[:, :, :width])
            found.append(part)
            first += rows
        return found


def _over_mesh(device: _Device, mesh: Mesh):
    """(learned, fixed, sides) -> embeddings, with a gradient that is reduced over the mesh once."""
    axes = mesh_lib.RULES["batch"]
    batch = mesh_lib.spec("batch")

    def shard_map(run, ins, outs):
        manual = set(axes)
        return jax.shard_map(run, in_specs=ins, out_specs=outs, axis_names=manual, check_vma=False)

    def parts(tree):
        return jax.tree.map(lambda leaf: _only(_at_rest(leaf), axes), tree)

    def cuts_of(learned):
        whole = set(whole_weights(learned, device.fsdp))
        return [
            _cut(_at_rest(leaf)) if _names(path) in whole else None
            for path, leaf in jax.tree_util.tree_leaves_with_path(learned)
        ]

    def forward(learned, fixed, sides):
        run = functools.partial(device.forward, cuts_of(learned))
        ins = (parts(learned), parts(fixed), batch)
        out, arrays = shard_map(run, ins, (batch, batch))(learned, fixed, sides)
        return out, (learned, fixed, sides, arrays)

    def backward(saved, cotangents):
        learned, fixed, sides, arrays = saved
        cuts = cuts_of(learned)
        run = functools.partial(device.backward, cuts)
        ins = (parts(learned), parts(fixed), batch, batch, batch)
        sums = shard_map(run, ins, batch)(learned, fixed, sides, arrays, cotangents)
        with jax.named_scope("reduce_gradients"):
            return _reduced(sums, learned, cuts), None, None

    run = jax.custom_vjp(lambda *inputs: forward(*inputs)[0])
    run.defvjp(forward, backward)

    def spread(x):  # no change for a training batch
        return jax.reshard(x, P(*batch, *([None] * (x.ndim - 1))))

    return lambda learned, fixed, sides: run(learned, fixed, jax.tree.map(spread, sides))


def _reduced(sums: Any, learned: Any, cuts: Sequence[int | None]) -> Any:
    """The sum over devices of every device's own [1, …], in the layout of `learned`.

    Everything here is one device's part, along the tensor axis, too; see `layer.gathered`.
    """
    axes, along = mesh_lib.RULES["batch"], mesh_lib.RULES["embed"]
    others = tuple(axis for axis in axes if axis not in along)
    leaves, tree = jax.tree.flatten(learned)

    def reduce(sums):
        out = []
        for total, leaf, cut in zip(sums, leaves, cuts, strict=True):
            total = total[0]
            if cut is not None:
                # On a torus of TPUs only this form becomes a reduce-scatter: libtpu replaces one
                # whose parts are first concatenated by an all-reduce and a slice. Where rings are
                # open (v5e:4x4) it does so with any form.
                total = jax.lax.psum_scatter(total, along, scatter_dimension=cut, tiled=True)
            done = cut is not None or _cut(_at_rest(leaf)) is not None
            out.append(jax.lax.psum(total, others if done else axes).astype(leaf.dtype))
        return out

    ins = [P(axes, *_without(_at_rest(leaf), axes)) for leaf in leaves]
    outs = [_at_rest(leaf) for leaf in leaves]
    run = jax.shard_map(reduce, in_specs=(ins,), out_specs=outs, check_vma=False)
    return tree.unflatten(run(jax.tree.leaves(sums)))


def _embedded(encode: Encode, fixed: Any, stacks: Sequence[Texts], learned: Any):
    """Embeddings [chunks, size, …] of each stack."""
    run = functools.partial(encode, learned, fixed)

    def of(stack: Texts) -> jax.Array:
        if stack.tokens.shape[0] > 1:
            return jax.lax.map(run, stack)
        return run(jax.tree.map(lambda x: x[0], stack))[None]

    return tuple(map(of, stacks))


def _order(texts: Texts, plan: Groups) -> jax.Array | None:
    """The order of this device's texts, from the shortest to the longest; None: unchanged."""
    return None if len(plan.rows) == 1 else jnp.argsort(texts.lengths, stable=True)


def _sorted(tree: Any, order: jax.Array | None) -> Any:
    return tree if order is None else jax.tree.map(lambda x: x[order], tree)


def _plus(total: Any, gradient: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, gradient)


def _names(path: Any) -> tuple[str, ...]:
    parts = (getattr(part, "key", getattr(part, "name", part)) for part in path)
    return tuple(str(part) for part in parts if str(part) != "value")


def _at_rest(leaf: jax.Array) -> P:
    """The sharding of an array on the mesh, one entry per dimension."""
    spec = tuple(jax.typeof(leaf).sharding.spec)
    return P(*spec, *(None,) * (leaf.ndim - len(spec)))


def _axes_of(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _only(spec: P, axes: Sequence[str]) -> P:
    """A layout along only these mesh axes."""
    kept = [tuple(axis for axis in _axes_of(entry) if axis in axes) for entry in spec]
    return P(*(entry or None for entry in kept))


def _without(spec: P, axes: Sequence[str]) -> P:
    """A layout along all mesh axes but these."""
    kept = [tuple(axis for axis in _axes_of(entry) if axis not in axes) for entry in spec]
    return P(*(entry or None for entry in kept))


def _cut(spec: P) -> int | None:
    """The dimension split by fsdp, if that has more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    along = [a for a in mesh_lib.RULES["embed"] if not mesh.empty and mesh.shape[a] > 1]
    for dim, entry in enumerate(spec):
        if set(along) & set(_axes_of(entry)):
            return dim
    return None

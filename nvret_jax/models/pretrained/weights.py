"""Conversion of HF safetensors to sharded arrays and back: one table for both directions.

A conversion is data: a table such as `BERT_TABLE` maps a pattern of HF keys to the path of our
weight and a named transform; the tables of other backbones are in their modules. Loading starts
from the abstract model (shapes only), so each array is made in its final dtype and sharding, and a
process reads only the slices its devices hold: there is never a second copy of the model in host
memory. One message reports everything that is wrong with a checkpoint.

Only safetensors are read. Pickled checkpoints can run code when opened, so they are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.pretrained.folder import inside, read_object, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LISTED_KEYS = 12  # per kind of problem; a wrong model would otherwise list hundreds

Index = tuple[slice, ...]  # with plain start and stop
Path = tuple[Any, ...]  # of a weight in a model's state


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one HF tensor corresponds to our array (of one layer).

    Attributes:
        hf_shape: our shape -> HF's shape.
        hf_index: (our slices, our shape) -> HF's slices; a list if they are not contiguous, to be
            read and joined along the first dimension.
        load: (HF's piece, shape of our piece) -> our piece.
        save: our whole array -> HF's.
        inputs: for a kernel, how many of our dimensions are its input, as a slice's stop (1: the
            first; -1: all but the last); None if it is not a kernel.
    """

    hf_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    hf_index: Callable[[Index, tuple[int, ...]], Index | list[Index]]
    load: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]
    inputs: int | None = None


def _merged(index: Index, shape: tuple[int, ...]) -> slice:
    """The part of a merged dimension that holds these slices; only the first is ever sliced."""
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner)


def _fused(index: Index, shape: tuple[int, ...]) -> list[slice]:
    """The same if the first dimension separates fused weights: one part for each of them."""
    parts = range(shape[0])[index[0]]
    inner, whole = _merged(index[1:], shape[1:]), math.prod(shape[1:])
    return [slice(p * whole + inner.start, p * whole + inner.stop) for p in parts]


COPY = Transform(
    hf_shape=lambda s: s,
    hf_index=lambda i, s: i,
    load=lambda x, s: x,
    save=lambda x: x,
)
# HF's Linear is [out, in]; ours [in, out].
LINEAR = Transform(
    hf_shape=lambda s: (s[1], s[0]),
    hf_index=lambda i, s: (i[1], i[0]),
    load=lambda x, s: x.T,
    save=lambda x: x.T,
    inputs=1,
)
# Into heads, grouped or not: HF [H·K, D], ours [D, H, K]; HF [N·G·K, D], ours [D, N, G, K].
TO_HEADS = Transform(
    hf_shape=lambda s: (math.prod(s[1:]), s[0]),
    hf_index=lambda i, s: (_merged(i[1:], s[1:]), i[0]),
    load=lambda x, s: np.moveaxis(x.reshape(*s[1:], s[0]), -1, 0),
    save=lambda x: np.moveaxis(x, 0, -1).reshape(-1, x.shape[0]),
    inputs=1,
)
# The bias of those: HF [H·K], ours [H, K].
HEADS_BIAS = Transform(
    hf_shape=lambda s: (math.prod(s),),
    hf_index=lambda i, s: (_merged(i, s),),
    load=lambda x, s: x.reshape(s),
    save=lambda x: x.reshape(-1),
)
# Out of heads: HF [D, H·K], ours [H, K, D].
FROM_HEADS = Transform(
    hf_shape=lambda s: (s[-1], math.prod(s[:-1])),
    hf_index=lambda i, s: (i[-1], _merged(i[:-1], s[:-1])),
    load=lambda x, s: np.moveaxis(x.reshape(s[-1], *s[:-1]), 0, -1),
    save=lambda x: np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1),
    inputs=-1,
)
# Several kernels in one: HF [3·H·K, D], ours [D, 3, H, K]; HF [2·F, D], ours [D, 2, F].
FUSED = Transform(
    hf_shape=TO_HEADS.hf_shape,
    hf_index=lambda i, s: [(rows, i[0]) for rows in _fused(i[1:], s[1:])],
    load=TO_HEADS.load,
    save=TO_HEADS.save,
    inputs=1,
)
FUSED_BIAS = Transform(
    hf_shape=HEADS_BIAS.hf_shape,
    hf_index=lambda i, s: [(rows,) for rows in _fused(i, s)],
    load=HEADS_BIAS.load,
    save=HEADS_BIAS.save,
)
Table = Mapping[str, tuple[Path, Transform]]

# HF key -> (path of our weight, transform). '{layer}' counts from 0, '{layer+1}' from 1 (weights
# that the first layer does not have). RoBERTa and XLM-R share this one.
BERT_TABLE: Table = {
    "embeddings.word_embeddings.weight": (("embeddings", "word"), COPY),
    "embeddings.position_embeddings.weight": (("embeddings", "position"), COPY),
    "embeddings.token_type_embeddings.weight": (("embeddings", "token_type"), COPY),
    "embeddings.LayerNorm.weight": (("embeddings", "norm_scale"), COPY),
    "embeddings.LayerNorm.bias": (("embeddings", "norm_bias"), COPY),
    **{
        f"encoder.layer.{{layer}}.{hf}": (("layers", ours), transform)
        for hf, ours, transform in (
            ("attention.self.query.weight", "query_kernel", TO_HEADS),
            ("attention.self.query.bias", "query_bias", HEADS_BIAS),
            ("attention.self.key.weight", "key_kernel", TO_HEADS),
            ("attention.self.key.bias", "key_bias", HEADS_BIAS),
            ("attention.self.value.weight", "value_kernel", TO_HEADS),
            ("attention.self.value.bias", "value_bias", HEADS_BIAS),
            ("attention.output.dense.weight", "out_kernel", FROM_HEADS),
            ("attention.output.dense.bias", "out_bias", COPY),
            ("attention.output.LayerNorm.weight", "attention_norm_scale", COPY),
            ("attention.output.LayerNorm.bias", "attention_norm_bias", COPY),
            ("intermediate.dense.weight", "up_kernel", LINEAR),
            ("intermediate.dense.bias", "up_bias", COPY),
            ("output.dense.weight", "down_kernel", LINEAR),
            ("output.dense.bias", "down_bias", COPY),
            ("output.LayerNorm.weight", "mlp_norm_scale", COPY),
            ("output.LayerNorm.bias", "mlp_norm_bias", COPY),
        )
    },
}
BERT_PREFIXES = ("", "bert.", "roberta.")  # checkpoints with a head have the encoder one level down
# Keys that a checkpoint may have and that a text embedding does not need.
IGNORED = (
    r"(.*\.)?pooler\..*",  # sentence-transformers pools the token vectors itself
    r"(.*\.)?embeddings\.position_ids",  # 0, 1, 2, …, stored by old versions of transformers
    r"cls\..*",  # BERT's pre-training heads
    r"lm_head\..*",  # RoBERTa's
    r"classifier\..*",
    r"qa_outputs\..*",
)
CARRIED = r"((bert|roberta)\.)?(pooler\..*)"  # of those, the ones that an export copies unchanged


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: float) -> str:
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: epath.PathLike) -> str:
    """sha256 (hex) of a file's bytes; read once per process and version of the file."""
    stat = epath.Path(path).stat()
    return _sha256(os.fspath(path), stat.length, stat.mtime)


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def weight_files(folder: epath.PathLike) -> list[epath.Path]:
    """The safetensors files of a model folder, in the order of their names.

    Raises:
        InputError: there are none (with a specific message if there is a pickle instead), or the
            index names missing files.
    """
    folder = epath.Path(folder)
    if inside(folder, SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = inside(folder, INDEX_FILE)
    if not index.exists():
        raise InputError(_without_weights(folder))
    weight_map = read_object(folder, INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no 'weight_map' from keys to files")
    named: dict[str, epath.Path] = {}
    for name in weight_map.values():
        if not isinstance(name, str) or name not in named:  # hundreds of keys name one file
            path = inside(folder, name, index)
            if not name.endswith(".safetensors"):
                raise InputError(
                    f"{index}: names {shown(name)}; only .safetensors files are read, see {folder}"
                )
            named[name] = path
    files = [named[name] for name in sorted(named)]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise InputError(f"{index}: names files that are not in the folder: {_some(missing)}")
    return files


def _without_weights(folder: epath.Path) -> str:
    """The message for a folder without safetensors."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return without_safetensors(str(folder), there)


def without_safetensors(model: str, files: Iterable[str]) -> str:
    """A message for a model that has no safetensors, or only other files.

    Args:
        model: its name or folder.
        files: the names of its files.
    """
    files = list(files)
    pickles = [f for f in files if re.search(r"(^|/)pytorch_model.*\.bin$|\.(pt|pth|ckpt)$", f)]
    frames = [f for f in files if re.search(r"(^|/)(tf_model\.h5|flax_model\.msgpack)$", f)]
    if pickles or frames:
        return (
            f"{model}: has only {(pickles or frames)[0]}, which is not read: opening a pickle can "
            f"run code. Write {SINGLE_FILE} with transformers: "
            "AutoModel.from_pretrained(folder).save_pretrained(folder)"
        )
    for ending, what in ((".onnx", "ONNX"), (".gguf", "GGUF"), (".ot", "rust-bert")):
        if found := [f for f in files if f.endswith(ending)]:
            return (
                f"{model}: has only {found[0]}, weights as {what}, which are not read; expected "
                f"{SINGLE_FILE}: use the model that this one was converted from"
            )
    if any(f == "adapter_model.safetensors" for f in files):
        return (
            f"{model}: holds an adapter, not a model; give the base model, and this folder as the "
            f"adapter (--config.student.adapter, adapter=…)"
        )
    return f"{model}: no {SINGLE_FILE} and no {INDEX_FILE}"


class Checkpoint:
    """The tensors of a folder's safetensors files, by name and by slice. A context manager.

    Attributes:
        files: the files, open while the context is.
        shapes: key -> shape. Keys have their current names (`LayerNorm.weight`, not `.gamma`).
        dtypes: key -> safetensors dtype name ('F32', 'BF16', …).
    """

    def __init__(self, folder: epath.PathLike, file: str | None = None):
        self.folder = epath.Path(folder)
        self.files = weight_files(folder) if file is None else [self.folder / file]
        for path in self.files:
            if not inside(path.parent, path.name).exists():
                raise InputError(f"{path}: no such file")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._where: dict[str, tuple[Any, str]] = {}

    @property
    def name(self) -> str:
        """The name of this checkpoint in messages."""
        return str(self.files[0] if len(self.files) == 1 else self.folder / INDEX_FILE)

    def __enter__(self) -> Checkpoint:
        for path in self.files:
            try:
                handle = safe_open(os.fspath(path), framework="numpy")
                for key in handle.keys():
                    piece = handle.get_slice(key)
                    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))
                    if name in self._where:
                        raise InputError(
                            f"{path}: holds {name} twice, as {self._where[name][1]} and as {key}; "
                            f"it is unclear which one counts"
                        )
                    self.shapes[name] = tuple(piece.get_shape())
                    self.dtypes[name] = piece.get_dtype()
                    self._where[name] = (handle, key)
            except InputError:
                raise
            except (SafetensorError, OSError, ValueError) as error:
                size = path.stat().length
                raise InputError(
                    f"{path}: not a whole safetensors file ({error}; {size} bytes); "
                    "copy or download it again"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._where.clear()  # drops the handles, and with them the mapped files

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the slices `index` of it, in its stored dtype.

        Raises:
            InputError: it holds NaN or an infinity.
        """
        handle, stored_key = self._where[key]
        found = (
            handle.get_tensor(stored_key) if index is None else handle.get_slice(stored_key)[index]
        )
        check_finite(found, key, self.name)
        return found


def check_finite(value: np.ndarray, key: str, where: str) -> None:
    """Raises InputError if a tensor of floats holds NaN or an infinity."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return
    # A finite sum proves that all values are finite, in a tenth of the time and without another
    # array; a second check detects mere overflow of the sum.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(value.sum(dtype=np.float64)):
            return
    bad = ~np.isfinite(value)
    if bad.any():
        what = "NaN" if np.isnan(value).any() else "an infinity"
        raise InputError(
            f"{where}: {key} holds {what} ({int(bad.sum()):,} of {value.size:,} values); the "
            "weights are damaged: copy or download them again"
        )


def _stacked(pattern: str) -> bool:
    return "{layer" in pattern


def _layer_keys(pattern: str, layers: int) -> list[str]:
    """The HF keys of one line of a table, in layer order."""
    if not _stacked(pattern):
        return [pattern]
    first = int("{layer+1}" in pattern)
    pattern = pattern.replace("{layer+1}", "{layer}")
    return [pattern.format(layer=layer + first) for layer in range(layers)]


def _check(
    checkpoint: Checkpoint,
    table: Table,
    shapes: Mapping[Path, tuple[int, ...]],
    prefixes: tuple[str, ...],
    ignored: tuple[str, ...],
) -> str:
    """Raises InputError with all mistakes; returns the prefix of the keys."""
    keys = set(checkpoint.shapes)
    bare: dict[str, tuple[int, ...]] = {}
    for pattern, (path, transform) in table.items():
        shape, layers = shapes[path], 0
        if _stacked(pattern):
            layers, shape = shape[0], shape[1:]
        for key in _layer_keys(pattern, layers):
            bare[key] = transform.hf_shape(shape)
    # The prefix that matches most keys: a checkpoint may lack any of them.
    prefix = max(prefixes, key=lambda p: sum(p + key in keys for key in bare))
    expected = {prefix + key: shape for key, shape in bare.items()}
    skipped = re.compile("|".join(ignored) or "(?!)")
    problems = []
    if missing := [key for key in expected if key not in keys]:
        problems.append(f"missing keys: {_some(missing)}")
    if unknown := sorted(k for k in keys if k not in expected and not skipped.fullmatch(k)):
        problems.append(f"unknown keys: {_some(unknown)}")
    if misshaped := [
        f"{key} {list(checkpoint.shapes[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in keys and checkpoint.shapes[key] != shape
    ]:
        problems.append(f"wrong shapes: {_some(misshaped)}")
    if odd := [
        f"{key} {checkpoint.dtypes[key]}"
        for key in expected
        if key in keys and checkpoint.dtypes[key] not in ("F64", "F32", "F16", "BF16")
    ]:
        problems.append(f"wrong dtypes (expected F64, F32, F16 or BF16): {_some(odd)}")
    if problems:
        raise InputError(f"{checkpoint.name}: {'; '.join(problems)}")
    return prefix


def shardings(axes: Mapping[tuple[str, ...], tuple[str | None, ...]], mesh: Mesh) -> dict:
    """Path -> NamedSharding as stored, from a model's `logical_axes()`."""
    return {path: mesh_lib.sharding(mesh, *names) for path, names in axes.items()}


def load(
    folder: epath.PathLike,
    shapes: Mapping[Path, tuple[int, ...]],
    axes: Mapping[Path, tuple[str | None, ...]],
    mesh: Mesh,
    *,
    dtype: Any,
    table: Table = BERT_TABLE,
    prefixes: tuple[str, ...] = BERT_PREFIXES,
    ignored: tuple[str, ...] = IGNORED,
    file: str | None = None,
) -> dict[Path, jax.Array]:
    """Reads a model's weights straight into their shards.

    Args:
        folder: holds `model.safetensors`, or shards with `model.safetensors.index.json`.
        shapes: path of each of our weights -> shape, stacked ones with the layers first.
        axes: path -> logical axes (`Bert.logical_axes()`).
        mesh: for the weights.
        dtype: of the arrays; stored float16, bfloat16, float32 or float64 is cast to it.
        table, prefixes: the conversion. Lines of the table whose weight is not in `shapes` (a bias
            that this model does not have) are skipped.
        ignored: patterns of whole keys that may exist and are not read.
        file: the only file to read, if it is not `model.safetensors`.

    Returns:
        path -> array with `mesh.sharding(mesh, *axes[path])`.

    Raises:
        InputError: a file is missing or damaged, or keys are unknown, missing or misshaped; one
            message names all of them.
    """
    dtype = jnp.dtype(dtype)
    arrays = {}
    table = {pattern: line for pattern, line in table.items() if line[0] in shapes}
    with Checkpoint(folder, file) as checkpoint:
        prefix = _check(checkpoint, table, shapes, prefixes, ignored)
        for pattern, (path, transform) in table.items():
            stacked, shape = _stacked(pattern), tuple(shapes[path])
            keys = [prefix + key for key in _layer_keys(pattern, shape[0])]
            one = shape[1:] if stacked else shape

            def piece(
                index: Index,
                *,
                transform: Transform = transform,
                shape: tuple[int, ...] = shape,
                one: tuple[int, ...] = one,
                keys: list[str] = keys,
                stacked: bool = stacked,
            ) -> np.ndarray:
                index = tuple(slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True))
                inner = index[1:] if stacked else index
                sizes = tuple(i.stop - i.start for i in inner)
                hf_index = transform.hf_index(inner, one)
                wanted = keys[index[0]] if stacked else keys
                out = np.empty((len(wanted), *sizes), dtype)
                for row, key in enumerate(wanted):
                    if isinstance(hf_index, list):
                        read = np.concatenate([checkpoint.read(key, i) for i in hf_index])
                    else:
                        read = checkpoint.read(key, hf_index)
                    with np.errstate(over="ignore"):  # reported below, with the name of the tensor
                        out[row] = transform.load(read, sizes)
                    if out.dtype.itemsize < read.dtype.itemsize and not np.isfinite(out[row]).all():
                        raise InputError(
                            f"{checkpoint.name}: {key} holds {float(np.abs(read).max()):.3g}, too "
                            f"large for {dtype.name}; use another param_dtype"
                        )
                return out if stacked else out[0]

            target = mesh_lib.sharding(mesh, *axes[path])
            # Waiting here frees the host copy of this weight before the next is read.
            arrays[path] = jax.block_until_ready(jax.make_array_from_callback(shape, target, piece))
    return arrays


def gather(array: jax.Array) -> np.ndarray:
    """A whole array on this process's host. All processes of the array must call it."""
    if not array.is_fully_addressable:
        whole = NamedSharding(array.sharding.mesh, P())
        array = jax.jit(lambda x: x, out_shardings=whole)(array).addressable_data(0)
    return np.asarray(array)


def to_hf(
    model: nnx.Module,
    *,
    table: Table = BERT_TABLE,
    value: Callable[[Any, Path], jax.Array] | None = None,
) -> dict[str, np.ndarray]:
    """A model's weights under HF's names and in HF's layout (without a head's prefix).

    Args:
        model: a backbone, or an `EmbeddingModel` around one.
        table: the conversion.
        value: (backbone, path of a weight) -> the value to write (`lora.merged`); None: the weight
            itself. One weight at a time, so that there is never a second model in memory.

    Returns:
        HF key -> contiguous array in the dtype of the value, in the order of the table.
    """
    backbone = getattr(model, "backbone", model)
    state = dict(nnx.to_flat_state(nnx.state(backbone)))
    tensors = {}
    for pattern, (path, transform) in table.items():
        if path not in state:  # a bias that this model does not have
            continue
        whole = gather(state[path][...] if value is None else value(backbone, path))
        stacked = _stacked(pattern)
        rows = whole if stacked else whole[None]
        for key, row in zip(_layer_keys(pattern, len(rows)), rows, strict=True):
            tensors[key] = np.ascontiguousarray(transform.save(row))
    return tensors


def carried(folder: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a source folder that are unused here but copied into an export: the pooler.

    Without them transformers would fill a `BertModel`'s pooler with random numbers and warn.
    Names come without a head's prefix, values as stored.
    """
    with Checkpoint(folder) as checkpoint:
        found = {key: re.fullmatch(CARRIED, key) for key in checkpoint.shapes}
        return {match[3]: checkpoint.read(key) for key, match in found.items() if match}

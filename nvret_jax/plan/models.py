"""A config's encoders as shapes with shardings: no weights, no tokenizer, nothing on a device."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import embedding_model
from nvret_jax.models import lora as lora_lib
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.flops import Shape, shape_of
from nvret_jax.models.options import EncoderOptions, LoraConfig, TeacherOptions
from nvret_jax.models.pretrained import sizes
from nvret_jax.models.pretrained.resolve import resolve
from nvret_jax.models.pretrained.spec import EncoderSpec, check_max_length, read_spec
from nvret_jax.options import blocks


@dataclasses.dataclass(frozen=True)
class Sketch:
    """An encoder without weights, laid out on a mesh.

    Attributes:
        name: of the model.
        spec, options, lora: as in an `Encoder`.
        graphdef, state: of its `EmbeddingModel`; the state holds shapes with shardings.
        shape: the sizes that determine its operations.
        lengths: tokens of a 'query' and of a 'passage'.
        folder: of its tokenizer; None if the model is from `sizes.KNOWN` because it is not on this
            machine.
    """

    name: str
    spec: EncoderSpec
    options: Options
    lora: LoraConfig | None
    graphdef: Any
    state: nnx.State
    shape: Shape
    lengths: dict[str, int]
    folder: epath.Path | None

    @property
    def from_table(self) -> bool:
        """Whether built-in sizes are used for a model that is not on this machine."""
        return self.folder is None

    @property
    def trainable(self) -> Any:
        """Like `Encoder.trainable`."""
        return nnx.Param if self.lora is None else lora_lib.trainable

    @property
    def model(self) -> nnx.Module:
        return nnx.merge(self.graphdef, self.state)

    def describe(self) -> str:
        """Model, size and dtypes, in words."""
        spec = self.spec
        trains = f", LoRA rank {self.lora.rank}" if self.lora else ""
        return (
            f"{self.name} ({self.shape.weights / 1e6:,.0f} M weights in {spec.param_dtype}"
            f"{trains}, products in {spec.dtype})"
        )


def sketch(
    spec: EncoderSpec,
    mesh: Mesh,
    *,
    name: str = "",
    lora: LoraConfig | None = None,
    dropout: float = 0.0,
    remat: str = "none",
    attention: str = "xla",
    lengths: dict[str, int] | None = None,
    folder: epath.Path | None = None,
) -> Sketch:
    """The model of a spec as `Encoder.from_pretrained` would lay it out on `mesh`.

    Raises:
        InputError: the mesh cannot split it, it has no such adapters, or the chips lack a kernel.
    """
    options, model = embedding_model.abstract(
        spec, mesh, adapters=lora, dropout=dropout, remat=remat, attention=attention
    )
    axes = model.logical_axes()
    state = nnx.from_flat_state(
        [
            (path, variable.replace(placed(variable, mesh, *axes[path])))
            for path, variable in nnx.to_flat_state(nnx.state(model))
        ]
    )
    trainable = nnx.Param if lora is None else lora_lib.trainable
    lengths = lengths or dict.fromkeys(("query", "passage"), spec.max_length)
    return Sketch(
        name=name or spec.architecture["model_type"],
        spec=spec,
        options=options,
        lora=lora,
        graphdef=nnx.split(model)[0],
        state=state,
        shape=shape_of(model, trainable),
        lengths=lengths,
        folder=folder,
    )


def in_dtype(model: Sketch, mesh: Mesh, dtype: str) -> Sketch:
    """The same encoder with products in another dtype, as `Encoder.with_dtype`."""
    if dtype == model.spec.dtype:
        return model
    return sketch(
        dataclasses.replace(model.spec, dtype=dtype),
        mesh,
        name=model.name,
        lora=model.lora,
        dropout=model.options.dropout,
        remat=model.options.remat,
        attention=model.options.attention,
        lengths=model.lengths,
        folder=model.folder,
    )


def placed(like: Any, mesh: Mesh, *axes: str | None) -> jax.ShapeDtypeStruct:
    """A shape and dtype, split by logical axes."""
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=mesh_lib.sharding(mesh, *axes))


def read(block: ConfigDict, mesh: Mesh, *, key: str, dropout: float = 0.0) -> Sketch:
    """The encoder of a config's block, `teacher`, `student` or one of `teachers`.

    Args:
        block: as in `config.encoder()`.
        mesh: of the topology.
        key: the block's, for messages.
        dropout: of a student, in training.

    Raises:
        InputError: the model is neither on this machine nor known; or as `Encoder.from_pretrained`.
    """
    wanted = blocks.read(EncoderOptions if key == "student" else TeacherOptions, block)
    with tempfile.TemporaryDirectory() as aside:
        folder, from_table = _folder(wanted.model, epath.Path(aside), key)
        spec, folder = read_spec(folder, **wanted.overrides)
        lengths = {kind: wanted.length(kind) or spec.max_length for kind in ("query", "passage")}
        for length in lengths.values():
            check_max_length(length, spec.backbone.max_tokens)
    spec = dataclasses.replace(spec, max_length=max(lengths.values()))
    return sketch(
        spec,
        mesh,
        name=str(wanted.model),
        lora=_lora(wanted),
        dropout=dropout,
        remat=wanted.remat,
        attention=wanted.attention,
        lengths=lengths,
        folder=None if from_table else folder,
    )


def _folder(model: str, aside: epath.Path, key: str) -> tuple[epath.Path, bool]:
    """The model's folder, or one made from the table; nothing is downloaded for a plan."""
    try:
        return resolve(model, download=False), False
    except InputError as error:
        if model.lower() not in {name.lower() for name in sizes.KNOWN}:
            raise InputError(
                f"{key}.model={model}: not on this machine ({error}), and not among the known "
                f"models: {', '.join(sizes.KNOWN)}"
            ) from None
        return sizes.write(model, aside), True


def _lora(wanted: TeacherOptions) -> LoraConfig | None:
    return lora_lib.read_config(wanted.adapter) if wanted.adapter else wanted.lora


def bytes_per_chip(tree: Any) -> int:
    """Bytes that shapes with shardings take on one chip."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total

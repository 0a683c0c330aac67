"""The trained module, from token ids to vectors, and how it is built and loaded from a folder.

    backbone → (latent attention) → pooling → (Dense …) → (first components) → (unit length)

With the pooling 'tokens' nothing is pooled and the rest applies to each token. Each part is in
separate files with separate names, which `load` reads in turn. A new projection is one more Dense,
whose initial kernel `load` makes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.models import latent as latent_lib
from nvret_jax.models import lora, projection
from nvret_jax.models.attention.kernels import check_platform
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.latent import LatentAttention, LatentConfig
from nvret_jax.models.lora import LoraConfig
from nvret_jax.models.pooling import DENSE_TABLE, Dense, Unpooled, check_pooling, l2_normalize, pool
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.spec import EncoderSpec

Paths = Mapping[weights.Path, Any]


@dataclasses.dataclass(frozen=True)
class Truncate:
    """Keeps the first components of an embedding.

    Attributes:
        width: how many.
        last: whether it is the last step, as in sentence-transformers: vectors are then shorter
            than 1. For a model compared by cosine they are scaled to unit length afterwards, so
            that their dot product is that cosine.
    """

    width: int
    last: bool


class EmbeddingModel(nnx.Module):
    """From token ids to one vector per text, or one per token ('tokens')."""

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        pooling: str,
        normalize: bool,
        latent: nnx.Module | None = None,
        dense: Sequence[nnx.Module] = (),
        truncate: Truncate | None = None,
    ):
        self.backbone = backbone
        self.pooling = check_pooling(pooling)
        self.normalize = normalize
        self.truncate = truncate
        if latent is not None:
            self.latent = latent
        if dense:
            self.dense = nnx.List(dense)

    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        dropout_keys_b: jax.Array | None = None,
        *,
        unpooled: Unpooled = None,
    ) -> jax.Array:
        """Embeds right-padded sequences; call it under `jax.set_mesh`.

        Args:
            tokens_bt: int32 [B, T], sharded over "batch".
            lengths_b: int32 [B], real tokens of each, at least 1.
            dropout_keys_b: typed PRNG keys [B], one per example; None: no dropout.
            unpooled: number of tokens at the beginning that are not pooled, an int, or int32 scalar
                or [B]; other tokens still attend to them. None: all are pooled.

        Returns:
            float32 [B, D], sharded over "batch". With 'tokens' [B, T, D], also at positions past
            the end, whose vectors attend to the text but count only if the caller decides so.
        """
        hidden_btd = self.backbone(tokens_bt, lengths_b, dropout_keys_b=dropout_keys_b)
        with jax.named_scope("pooling"):
            if hasattr(self, "latent"):
                hidden_btd = self.latent(hidden_btd)
            if self.pooling == "tokens":
                emb = hidden_btd.astype(jnp.float32)
            else:
                emb = pool(hidden_btd, lengths_b, self.pooling, unpooled=unpooled)
            for dense in getattr(self, "dense", ()):
                emb = dense(emb)
            if self.truncate is not None and self.truncate.last:
                emb = l2_normalize(emb) if self.normalize else emb
                return emb[..., : self.truncate.width]
            if self.truncate is not None:
                emb = emb[..., : self.truncate.width]
            return l2_normalize(emb) if self.normalize else emb

    def logical_axes(self) -> dict[weights.Path, tuple[str | None, ...]]:
        """Path of each weight in `nnx.state(self)` -> its logical axes as stored."""
        axes = {("backbone", *p): names for p, names in self.backbone.logical_axes().items()}
        state = dict(nnx.to_flat_state(nnx.state(self)))
        for path in state:
            if path[0] == "latent":
                axes[path] = LatentAttention.AXES[path[-1]]
            elif path[0] == "dense":
                axes[path] = Dense.AXES[path[-1]]
        return axes


def build(
    spec: EncoderSpec, options: Options, *, adapters: LoraConfig | None = None
) -> EmbeddingModel:
    """The model of a spec with random weights; call it under `nnx.eval_shape` for shapes only.

    Raises:
        InputError: adapters for targets that the model does not have.
    """
    rngs, family, shape = nnx.Rngs(0), spec.family, spec.backbone
    kwargs = {"options": options, "param_dtype": spec.param_dtype, "rngs": rngs}
    backbone = family.backbone(shape, **kwargs)
    if adapters is not None:
        lora.attach(backbone, adapters, family.table, rngs=rngs)
    latent = None
    if spec.pooling == "latent":
        config = LatentConfig.from_hf(spec.architecture, shape.hidden_size)
        latent = LatentAttention(config, **kwargs)
    return EmbeddingModel(
        backbone,
        pooling=spec.pooling,
        normalize=spec.normalize,
        latent=latent,
        dense=_dense(spec, kwargs),
        truncate=None
        if spec.truncate_dim is None
        else Truncate(spec.truncate_dim, last=spec.similarity != "cosine"),
    )


def _dense(spec: EncoderSpec, kwargs: Mapping[str, Any]) -> list[Dense]:
    """The Dense modules; a projection is trained, so it is float32 like adapters."""
    dense = [Dense(config, **kwargs) for config in spec.dense]
    if spec.projects:
        dense[-1] = Dense(spec.dense[-1], **{**kwargs, "param_dtype": jnp.float32})
    return dense


def abstract(
    spec: EncoderSpec,
    mesh: Mesh,
    *,
    adapters: LoraConfig | None = None,
    dropout: float = 0.0,
    remat: str = "none",
    attention: str = "xla",
) -> tuple[Options, EmbeddingModel]:
    """How a mesh computes the model of a spec, and the model as shapes alone.

    Args:
        spec, adapters: as of `build`.
        mesh: may be of devices that are not there.
        dropout, remat, attention: see `Encoder.from_pretrained`.

    Raises:
        InputError: the mesh cannot cut the model, its devices have no such kernel, or the model has
            no such adapters.
    """
    platform = platforms.of(mesh)
    options = Options(
        dtype=spec.dtype,
        dropout=dropout,
        remat=remat,
        attention=attention,
        wide=platform == "cpu",
    )
    check_platform(attention, platform)
    check_mesh(spec, mesh)
    return options, nnx.eval_shape(functools.partial(build, spec, options, adapters=adapters))


def check_mesh(spec: EncoderSpec, mesh: Mesh) -> None:
    """Raises InputError, with the numbers, if `mesh` cannot split the model of this spec."""
    spec.family.check_mesh(spec.backbone, mesh)
    if spec.pooling == "latent":
        config = LatentConfig.from_hf(spec.architecture, spec.backbone.hidden_size)
        latent_lib.check_mesh(config, mesh)


def _below(root: weights.Path, paths: Paths) -> dict[weights.Path, Any]:
    """The entries of `paths` under `root`, by the rest of the path."""
    return {path[len(root) :]: v for path, v in paths.items() if path[: len(root)] == root}


def load(
    abstract: EmbeddingModel,
    spec: EncoderSpec,
    folder: epath.Path,
    backbone_folder: epath.Path,
    mesh: Mesh,
    *,
    adapter: epath.Path | None = None,
    seed: int = 0,
) -> nnx.State:
    """Fills an abstract model from a folder, straight into the shards of `mesh`.

    Args:
        abstract: from `nnx.eval_shape(build)`.
        spec: its spec.
        folder, backbone_folder: of the model, and of its backbone's weights.
        adapter: a PEFT folder; None: adapters, if the model has any, initially change nothing.
        seed: of those, and of a projection.

    Returns:
        the model's state.

    Raises:
        InputError: a file is missing or damaged, or its weights do not match; one message names all
            wrong keys of a file.
    """
    flat = dict(nnx.to_flat_state(nnx.state(abstract)))
    shapes = {path: tuple(variable.shape) for path, variable in flat.items()}
    axes = abstract.logical_axes()
    arrays: dict[weights.Path, jax.Array] = {}

    def read(root: weights.Path, place: epath.Path, table: weights.Table, **kwargs: Any) -> None:
        wanted = {table[key][0] for key in table}
        own = {p: shape for p, shape in _below(root, shapes).items() if p in wanted}
        found = weights.load(
            place, own, _below(root, axes), mesh, dtype=spec.param_dtype, table=table, **kwargs
        )
        arrays.update({(*root, *path): array for path, array in found.items()})

    family = spec.family
    read(
        ("backbone",),
        backbone_folder,
        family.table,
        prefixes=family.prefixes,
        ignored=family.ignored,
    )
    if spec.pooling == "latent":
        read(
            ("latent",),
            backbone_folder,
            latent_lib.LATENT_TABLE,
            prefixes=latent_lib.LATENT_PREFIXES,
            ignored=latent_lib.LATENT_IGNORED,
        )
    for number, name in enumerate(spec.dense_folders):
        read(("dense", number), folder / name, DENSE_TABLE, prefixes=("",), ignored=())
    if spec.projects:
        path, last = ("dense", len(spec.dense) - 1, "kernel"), spec.dense[-1]
        kernel = projection.initial(last.in_features, last.out_features, seed)
        arrays[path] = jax.make_array_from_callback(
            kernel.shape, mesh_lib.sharding(mesh, *axes[path]), lambda at: kernel[at]
        )
    config = getattr(getattr(abstract.backbone, "layers", None), "lora", None)
    if config is not None:
        inner = (_below(("backbone",), shapes), _below(("backbone",), axes), mesh)
        if adapter is None:
            found = lora.initial(*inner, seed=seed)
        else:
            found = lora.load(
                adapter,
                *inner,
                table=family.table,
                prefixes=family.prefixes,
                ignored=family.ignored,
                targets=config.targets,
            )
        arrays.update({("backbone", *path): array for path, array in found.items()})
    return nnx.from_flat_state(
        [(path, variable.replace(arrays[path])) for path, variable in flat.items()]
    )


def to_hf(model: EmbeddingModel, spec: EncoderSpec) -> dict[str, np.ndarray]:
    """The content of a folder's model.safetensors: the backbone under HF's names, adapters merged.

    Kernels with merged adapters are float32, all other weights keep their stored dtype.

    With NV-Embed's latent attention, both parts have the names that NV-Embed's code uses. All
    processes must call it, under `jax.set_mesh`.
    """
    tensors = weights.to_hf(model.backbone, table=spec.family.table, value=lora.merged)
    if spec.pooling != "latent":
        return tensors
    own = weights.to_hf(model.latent, table=latent_lib.LATENT_TABLE)
    return {f"embedding_model.{key}": value for key, value in tensors.items()} | {
        f"latent_attention_model.{key}": value for key, value in own.items()
    }


def dense_to_hf(model: EmbeddingModel) -> list[dict[str, np.ndarray]]:
    """The content of model.safetensors of each Dense module, in order."""
    return [weights.to_hf(dense, table=DENSE_TABLE) for dense in getattr(model, "dense", ())]

"""A model read from a folder, as weights on a mesh: how it is read, changed and written.

`EmbeddingModel` (embedding_model.py) is the module that is trained. `LoadedModel` is that module
with all that came with it: what decides its embeddings, its tokenizer, and where it is from. What
it is used for, texts in and embeddings out, is `Encoder` (encoder.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax import options as options_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models import embedding_model
from nvret_jax.models import lora as lora_lib
from nvret_jax.models.attention.kernels import check_platform
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.embedding_model import EmbeddingModel
from nvret_jax.models.lora import LoraConfig
from nvret_jax.models.options import EncoderOptions
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve
from nvret_jax.models.pretrained.spec import EncoderSpec, read_spec
from nvret_jax.models.tokenize import ModelTokenizer

_DTYPE = options_lib.choice("float32", "bfloat16", "float16")
_TAKES = options_lib.takes_of(EncoderOptions)
_PRETRAINED = {
    "name_or_path": options_lib.Anything("a folder or a hub id", (str, os.PathLike)),
    "mesh": options_lib.Anything("a mesh, such as make_mesh()", (Mesh,), unset=True),
    "dtype": _DTYPE,
    "param_dtype": _DTYPE,
    "max_length": options_lib.whole(1, what="tokens", unset=True),
    "pooling": _TAKES["pooling"],
    "normalize": options_lib.flag(unset=True),
    "query_prompt": _TAKES["query_prompt"],
    "passage_prompt": _TAKES["passage_prompt"],
    "prompt_in_pooling": _TAKES["prompt_in_pooling"],
    "bidirectional": _TAKES["bidirectional"],
    "projection": _TAKES["projection"],
    "lora": options_lib.Anything("a LoraConfig", (LoraConfig,), unset=True),
    "adapter": options_lib.Anything("a folder", (str, os.PathLike), unset=True),
    "seed": options_lib.SEED,
    "dropout": options_lib.number(0, 1, "a share", below=True),
    "remat": _TAKES["remat"],
    "attention": _TAKES["attention"],
    "download": options_lib.flag(),
}


class LoadedModel:
    """An embedding model with its weights on a mesh.

    Attributes:
        spec: what decides an embedding besides weights and tokenizer.
        tokenizer: the model's own.
        mesh: where the weights are and the work is done.
        folder: where the model was read from.
        name: what it was asked for by: a hub id, or a path as it was given.
        width: D, the length of an embedding.
        lora: what adapters the model has; None: none.
    """

    def __init__(
        self,
        graphdef: Any,
        state: Any,
        *,
        spec: EncoderSpec,
        tokenizer: ModelTokenizer,
        mesh: Mesh,
        folder: epath.Path,
        backbone_folder: epath.Path,
        weights_sha256: str | None = None,
        lora: LoraConfig | None = None,
        name: str | None = None,
        options: Options | None = None,
    ):
        self._graphdef, self._state, self._options = graphdef, state, options
        self._weights_sha256 = weights_sha256
        self._backbone_folder = backbone_folder
        self.spec, self.tokenizer, self.mesh, self.folder = spec, tokenizer, mesh, folder
        self.width = spec.width
        self.lora = lora
        self.name = os.fspath(folder) if name is None else name

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = DEFAULT_MODEL,
        *,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        param_dtype: str = "float32",
        max_length: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        prompt_in_pooling: str | None = None,
        bidirectional: bool | None = None,
        projection: int = 0,
        lora: LoraConfig | None = None,
        adapter: epath.PathLike | None = None,
        seed: int = 0,
        dropout: float = 0.0,
        remat: str = "none",
        attention: str = "auto",
        download: bool = False,
    ) -> Self:
        """Reads a model; see `resolve` for how a name becomes a folder.

        Args:
            name_or_path: a folder, or a hub id.
            mesh: default: all devices, the batch split over them.
            dtype: of the products. 'bfloat16' is the fast one on accelerators; 'float32' is
                float32 everywhere, never TF32.
            param_dtype: of the weights at rest, whatever the file holds: 'float32', 'bfloat16' or
                'float16'. For training all weights keep float32; a frozen base under adapters is as
                good in 'bfloat16' and half as large.
            max_length, pooling, normalize, query_prompt, passage_prompt, prompt_in_pooling: None:
                as the folder says; see `EncoderSpec`.
            bidirectional: of a decoder: whether tokens see what comes after them. None: as the
                folder says.
            projection: the width of a new linear layer, float32, after the pooling and what the
                folder has behind it; see `models.projection`. 0: none.
            lora: gives the backbone new adapters, float32 whatever `param_dtype` is. An export adds
                them to the kernels in float32 and rounds the sum once, to its own dtype.
            adapter: a folder with PEFT's adapter_config.json and adapter_model.safetensors, read
                into adapters. Not with `lora`.
            seed: of new adapters, and of a projection.
            dropout: rate in training; it applies only where the model is called with keys.
            remat: of `options.REMAT`: what the backward pass computes again instead of keeping it,
                from nothing to most: 'none', 'attention' (scores), 'dots' (all but products with
                weights), 'full' (whole layers). Gradients are equal.
            attention: of `options.ATTENTION`: 'xla' anywhere; 'cudnn' on NVIDIA GPUs, in bfloat16
                or float16; 'splash' on TPUs, in bfloat16. The two know no dropout. 'auto': 'cudnn'
                where it supports what is asked, else 'xla'.
            download: whether the hub may be accessed over the network.

        Raises:
            InputError: no such model, or one we cannot compute; one line saying what to do.
        """
        options_lib.check_arguments("Encoder.from_pretrained", locals(), _PRETRAINED)
        folder = resolve(name_or_path, download=download)
        mesh = mesh_lib.given(mesh)
        check_platform(attention, platforms.of(mesh))  # before anything is read
        spec, backbone_folder = read_spec(
            folder,
            dtype=dtype,
            param_dtype=param_dtype,
            max_length=max_length,
            pooling=pooling,
            normalize=normalize,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
            prompt_in_pooling=prompt_in_pooling,
            bidirectional=bidirectional,
            projection=projection,
        )
        embedding_model.check_mesh(spec, mesh)
        tokenizer = ModelTokenizer.from_folder(backbone_folder)
        files = weights.weight_files(backbone_folder)
        files += [
            file for name in spec.dense_folders for file in weights.weight_files(folder / name)
        ]
        if adapter is not None:
            if lora is not None:
                raise InputError(f"lora and adapter={os.fspath(adapter)} are both given; give one")
            adapter = paths.local(adapter, "adapter")
            lora = lora_lib.read_config(adapter, ignored=spec.family.ignored)
            files.append(adapter / lora_lib.WEIGHTS_FILE)
        # Shapes only: no weight exists before it is read from the file.
        options, abstract = embedding_model.abstract(
            spec, mesh, adapters=lora, dropout=dropout, remat=remat, attention=attention
        )
        state = embedding_model.load(
            abstract, spec, folder, backbone_folder, mesh, adapter=adapter, seed=seed
        )
        graphdef = nnx.split(abstract)[0]
        digests = [weights.file_sha256(file) for file in files]
        if adapter is not None:
            digests.append(str(lora.scale))
        if spec.projects:
            digests.append(f"projection {seed}")
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
        return cls(
            graphdef,
            state,
            spec=spec,
            tokenizer=tokenizer,
            mesh=mesh,
            folder=folder,
            backbone_folder=backbone_folder,
            weights_sha256=digest,
            lora=lora,
            name=os.fspath(name_or_path),
            options=options,
        )

    @property
    def model(self) -> EmbeddingModel:
        """The module, around this encoder's own arrays (nothing is copied)."""
        return nnx.merge(self._graphdef, self._state)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of weights, tokenizer and spec: equal where the embeddings are.

        After `replace` the weights are hashed from the arrays, which gathers them: on several
        processes, all must ask for it.
        """
        if self._weights_sha256 is None:
            digest = hashlib.sha256()
            tensors = [self.save_weights_hf(), *self.save_dense_hf()]
            for key, value in (item for part in tensors for item in part.items()):
                digest.update(key.encode() + value.tobytes())
            self._weights_sha256 = digest.hexdigest()
        content = {
            "weights": self._weights_sha256,
            "tokenizer": self.tokenizer.fingerprint,
            **dataclasses.asdict(self.spec),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _changed(self, as_class: type[LoadedModel] | None = None, **changes: Any) -> Any:
        """This encoder, built with other values of some of the constructor's arguments.

        Args:
            as_class: of the new one; None: this one's.
            **changes: the values.
        """
        values = {
            "graphdef": self._graphdef,
            "state": self._state,
            "spec": self.spec,
            "tokenizer": self.tokenizer,
            "mesh": self.mesh,
            "folder": self.folder,
            "backbone_folder": self._backbone_folder,
            "weights_sha256": self._weights_sha256,
            "lora": self.lora,
            "name": self.name,
            "options": self._options,
        }
        return (as_class or type(self))(**(values | changes))

    def replace(self, state: Any) -> Self:
        """This encoder with other weights.

        Args:
            state: as `nnx.split(encoder.model)[1]`: same paths, shapes and shardings. Steps
                compiled for this encoder serve the new one.
        """
        return self._changed(state=state, weights_sha256=None)

    def with_dtype(self, dtype: str) -> Self:
        """This encoder, on the same weights, with products in another dtype.

        Args:
            dtype: as of `from_pretrained`.

        Raises:
            InputError: its attention is not computed in that dtype.
        """
        if dtype == self.spec.dtype:
            return self
        spec = dataclasses.replace(self.spec, dtype=dtype)
        options = dataclasses.replace(self._options, dtype=dtype)
        build = functools.partial(embedding_model.build, spec, options, adapters=self.lora)
        graphdef = nnx.split(nnx.eval_shape(build))[0]
        return self._changed(graphdef=graphdef, spec=spec, options=options)

    def with_texts(self, *, query_prompt: str, passage_prompt: str, max_length: int) -> Self:
        """This encoder, on the same weights, with other prompts and another greatest length."""
        spec = dataclasses.replace(
            self.spec,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
            max_length=max_length,
        )
        return self._changed(spec=spec)

    def without_projection(self) -> Self:
        """This encoder, on the same weights, without its new projection."""
        kept = len(self.spec.dense_folders)
        spec = dataclasses.replace(self.spec, dense=self.spec.dense[:kept])
        build = functools.partial(embedding_model.build, spec, self._options, adapters=self.lora)
        flat = nnx.to_flat_state(self._state)
        state = [(path, value) for path, value in flat if path[:2] != ("dense", kept)]
        return self._changed(
            graphdef=nnx.split(nnx.eval_shape(build))[0],
            state=nnx.from_flat_state(state),
            spec=spec,
            weights_sha256=None,
        )

    def with_projection(self, kernel: np.ndarray) -> Self:
        """This encoder with another kernel, float32 [D, E], of its new projection."""
        path = ("dense", len(self.spec.dense_folders), "kernel")

        def put(value: nnx.Variable) -> nnx.Variable:
            place = value[...].sharding
            return value.replace(
                jax.make_array_from_callback(kernel.shape, place, lambda at: kernel[at])
            )

        flat = nnx.to_flat_state(self._state)
        return self.replace(
            nnx.from_flat_state([(p, put(value) if p == path else value) for p, value in flat])
        )

    def save_weights_hf(self) -> dict[str, np.ndarray]:
        """HF key -> array: our weights, and what the source had beside them (a BERT's pooler).

        Adapters are merged into the kernels, which are float32 then. All processes must call it.
        What transformers reads from it is the plain backbone (`BertModel`, `MistralModel`, …),
        without a warning where the source gave none. The weights of Dense modules are not among
        it: `save_dense_hf`.
        """
        with jax.set_mesh(self.mesh):
            tensors = embedding_model.to_hf(self.model, self.spec)
        if self.spec.family.table is not weights.BERT_TABLE:
            return tensors
        extra = weights.carried(self._backbone_folder)
        dtype = jnp.dtype(self.spec.param_dtype)
        return tensors | {key: value.astype(dtype) for key, value in extra.items()}

    def save_dense_hf(self) -> list[dict[str, np.ndarray]]:
        """HF key -> array for each Dense module, as `spec.dense` lists them."""
        return embedding_model.dense_to_hf(self.model)

    def merge_rounding(self, dtype: str) -> tuple[float, float]:
        """How much adapters change the weights, and what share of that an export in `dtype` loses.

        See `lora.rounding`; (0, 0) without adapters. All processes must call it.
        """
        with jax.set_mesh(self.mesh):
            return lora_lib.rounding(self.model.backbone, self.spec.family.table, dtype)

    def save_adapter(self, folder: epath.PathLike) -> None:
        """Writes the adapters alone, as PEFT reads them; all processes call it, one writes.

        They name the model they belong to as this encoder was asked for it (`name`), which is where
        `AutoPeftModel` will look.

        Raises:
            InputError: the model has none.
        """
        table = self.spec.family.table
        lora_lib.save(self.model.backbone, folder, table=table, base=self.name)

    @property
    def trainable(self) -> Any:
        """The filter of what training changes: all weights, or with adapters only those."""
        return nnx.Param if self.lora is None else lora_lib.trainable

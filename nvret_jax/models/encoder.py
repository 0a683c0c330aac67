"""Texts in, embeddings out: a backbone with its pooling, its tokenizer and its prompts.

    encoder = Encoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    emb_nd = encoder.encode(["a text", "another"])

`EmbeddingModel` (embedding_model.py) is what is trained: a Flax module from token ids to vectors.
`Encoder` is what is used: it owns the mesh, reads the folder, and turns any number of texts into
one array; for late-interaction models `encode_tokens` gives one array a text.

Encoding is a loop over one compiled step per bucket of lengths. How many tokens a step takes is a
property of the device (`TOKENS_PER_DEVICE`): a CPU is fastest when a layer's activations stay in
its cache, an accelerator when its matrix units are full. How texts stream through it: stream.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import options as options_lib
from nvret_jax.data import arguments
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models import embedding_model
from nvret_jax.models import lora as lora_lib
from nvret_jax.models.attention.kernels import check_platform
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.buckets import Batch
from nvret_jax.models.embedding_model import EmbeddingModel
from nvret_jax.models.lora import LoraConfig
from nvret_jax.models.options import EncoderOptions
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve
from nvret_jax.models.pretrained.spec import EncoderSpec, read_spec
from nvret_jax.models.stream import Block, Stream
from nvret_jax.models.tokenize import ModelTokenizer, TextTokens
from nvret_jax.processes import progress as progress_lib

__all__ = ["DEFAULT_MODEL", "EmbeddingModel", "Encoder", "EncoderSpec", "LoraConfig"]

# Tokens of one compiled step, per device the batch is split over. On a CPU about a thousand keeps
# a layer's activations in the cache: measured 1.4 times the speed of 4,096. For accelerators the
# number is an estimate, not a measurement: enough to fill the matrix units of a small model, and by
# count about 3 GB of activations for the largest (1,024 wide, 16 heads, 512 tokens, float32).
TOKENS_PER_DEVICE = {"cpu": 1024, "gpu": 65536, "tpu": 65536}


# One compiled step per (kind of model, shape of batch, mesh), shared by all encoders of the
# process: the weights are an argument, so new ones (`Encoder.replace`) compile nothing.
@functools.partial(jax.jit, static_argnums=0)
def _embed(
    graphdef: Any,
    state: Any,
    tokens_bt: jax.Array,
    lengths_b: jax.Array,
    skip_b: jax.Array | None,
) -> jax.Array:
    emb = nnx.merge(graphdef, state)(tokens_bt, lengths_b, skip=skip_b)
    return jax.reshard(emb, P(*(None,) * emb.ndim))  # whole on every process, to be read there


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _token_budget(platform: str, dtype: str) -> int:
    """Tokens of a step per device: `TOKENS_PER_DEVICE`, twice that for narrow types on a CPU.

    There the weights are laid out anew for every narrow product, which larger steps do less often:
    2,048 tokens took 8 % less than 1,024, and 4,096 no less. For float32 the two were equal.
    """
    budget = TOKENS_PER_DEVICE.get(platform, 65536)
    return 2 * budget if platform == "cpu" and dtype != "float32" else budget


_DTYPE = options_lib.choice("float32", "bfloat16", "float16")
_TAKES = options_lib.takes_of(EncoderOptions)
_PRETRAINED = {
    "name_or_path": options_lib.Anything("a folder or a hub id", (str, os.PathLike)),
    "dtype": _DTYPE,
    "param_dtype": _DTYPE,
    "max_length": options_lib.whole(1, what="tokens", unset=True),
    "pooling": _TAKES["pooling"],
    "normalize": options_lib.flag(unset=True),
    "query_prompt": _TAKES["query_prompt"],
    "passage_prompt": _TAKES["passage_prompt"],
    "prompt_in_pooling": _TAKES["prompt_in_pooling"],
    "bidirectional": _TAKES["bidirectional"],
    "lora": options_lib.Anything("a LoraConfig", (LoraConfig,), unset=True),
    "adapter": options_lib.Anything("a folder", (str, os.PathLike), unset=True),
    "seed": options_lib.SEED,
    "dropout": options_lib.number(0, 1, "a share", below=True),
    "remat": _TAKES["remat"],
    "attention": _TAKES["attention"],
    "download": options_lib.flag(),
}
_ENCODE = {
    "kind": options_lib.choice("passage", "query"),
    "max_length": options_lib.whole(1, what="tokens", unset=True),
    "token_budget": options_lib.whole(1, what="tokens", unset=True),
    "progress": options_lib.flag(),
}


class Encoder:
    """A model that turns texts into embeddings, on a mesh.

    Attributes:
        spec: what decides an embedding besides weights and tokenizer.
        tokenizer: the model's own.
        mesh: where the weights lie and the work is done.
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
        self._texts = TextTokens(spec, tokenizer, folder)
        self._warned: set[tuple[str, int]] = set()  # (kind, length) of cuts that were reported
        self.width = spec.width
        self.lora = lora
        self.name = os.fspath(folder) if name is None else name

    def __repr__(self) -> str:
        spec = self.spec
        prompts = [kind for kind in ("query", "passage") if spec.prompt(kind)]
        return (
            f"Encoder({os.fspath(self.folder)[-80:]!r}: {spec.architecture['model_type']}, "
            f"{self.width} wide, {spec.pooling} pooling, texts cut at {spec.max_length} tokens, "
            f"prompts for {' and '.join(prompts) or 'nothing'}, {spec.dtype}, "
            f"{self.mesh.size} device{'s' if self.mesh.size > 1 else ''})"
        )

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
        lora: LoraConfig | None = None,
        adapter: epath.PathLike | None = None,
        seed: int = 0,
        dropout: float = 0.0,
        remat: str = "none",
        attention: str = "xla",
        download: bool = False,
    ) -> Encoder:
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
            lora: gives the backbone new adapters, float32 whatever `param_dtype` is. An export adds
                them to the kernels in float32 and rounds the sum once, to its own dtype.
            adapter: a folder with PEFT's adapter_config.json and adapter_model.safetensors, read
                into adapters. Not with `lora`.
            seed: of new adapters.
            dropout: rate in training; it applies only where the model is called with keys.
            remat: of `options.REMAT`: what the backward pass computes again instead of keeping it,
                from nothing to most: 'none', 'attention' (scores), 'dots' (all but products with
                weights), 'full' (whole layers). Gradients are equal.
            attention: of `options.ATTENTION`: 'xla' anywhere; 'cudnn' on NVIDIA GPUs, in bfloat16
                or float16; 'splash' on TPUs, in bfloat16. The two know no dropout.
            download: whether the hub may be asked over the network.

        Raises:
            InputError: no such model, or one we cannot compute; one line saying what to do.
        """
        options_lib.check_arguments("Encoder.from_pretrained", locals(), _PRETRAINED)
        folder = resolve(name_or_path, download=download)
        mesh = mesh_lib.make_mesh() if mesh is None else mesh
        options = Options(
            dtype=dtype,
            dropout=dropout,
            remat=remat,
            attention=attention,
            wide=_platform(mesh) == "cpu",
        )
        check_platform(attention, _platform(mesh))
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
        build = functools.partial(embedding_model.build, spec, options, adapters=lora)
        abstract = nnx.eval_shape(build)
        state = embedding_model.load(
            abstract, spec, folder, backbone_folder, mesh, adapter=adapter, seed=seed
        )
        graphdef = nnx.split(abstract)[0]
        digests = [weights.file_sha256(file) for file in files]
        if adapter is not None:
            digests.append(str(lora.scale))
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

    def _changed(self, **changes: Any) -> Encoder:
        """This encoder, built with other values of some of the constructor's arguments."""
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
        return Encoder(**(values | changes))

    def replace(self, state: Any) -> Encoder:
        """This encoder with other weights.

        Args:
            state: as `nnx.split(encoder.model)[1]`: same paths, shapes and shardings. Steps
                compiled for this encoder serve the new one.
        """
        return self._changed(state=state, weights_sha256=None)

    def with_dtype(self, dtype: str) -> Encoder:
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

    def with_texts(self, *, query_prompt: str, passage_prompt: str, max_length: int) -> Encoder:
        """This encoder, on the same weights, with other prompts and another greatest length."""
        spec = dataclasses.replace(
            self.spec,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
            max_length=max_length,
        )
        return self._changed(spec=spec)

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

    def unpooled(self, tokens: Sequence[np.ndarray], kind: str) -> np.ndarray | None:
        """How many tokens at the beginning of each text are its prompt's and not pooled.

        Args:
            tokens: as `tokenize` gives them.
            kind: 'passage' or 'query'.

        Returns:
            int32 [len(tokens)], less than the tokens of each: at least one is pooled. None where
            prompts are pooled, too. See `skip` of `EmbeddingModel`.
        """
        return self._texts.unpooled(tokens, kind)

    def joined_prompt(self, kind: str) -> str | None:
        """The unpooled prompt whose last token joins the text's first word; None: it does not.

        This package pools that word. sentence-transformers counts the prompt by itself and leaves
        it out, also in an exported folder.
        """
        return self._texts.joined_prompt(kind)

    def uncounted_tokens(self, kind: str) -> list[int]:
        """Ids of the tokens whose vectors do not count; none where tokens are pooled."""
        return [] if self.spec.late is None else self._texts.skipped(kind)

    def lengthen(self, tokens: list[np.ndarray], kind: str) -> tuple[list[np.ndarray], list[int]]:
        """(tokens that get a vector, how many of them others see), text by text.

        They differ where a late-interaction model lengthens queries with mask tokens that see the
        query and are not seen.
        """
        return self._texts.expanded(tokens, kind)

    def tokenize(
        self, texts: Sequence[str], *, kind: str = "passage", max_length: int | None = None
    ) -> list[np.ndarray]:
        """Token ids of texts, prompt and special tokens included.

        Args:
            texts, kind, max_length: as in `encode`.

        Returns:
            int32 arrays of 1..max_length ids, text by text.

        Raises:
            InputError: the tokenizer knows more tokens than the model.
        """
        return self._texts.tokenize(texts, kind, max_length)

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: bool = False,
        warn: bool = True,
    ) -> np.ndarray:
        """Embeds texts.

        Args:
            texts: any number, in anything that has an order: a list, a generator, a column. Each
                gets the prompt of its kind before it.
            kind: 'passage' or 'query'.
            max_length: tokens a text is cut to; default: the spec's.
            token_budget: tokens (padding included) of one step per device the batch is split
                over; default by device, see `TOKENS_PER_DEVICE`.
            progress: a bar on the main process.
            warn: log how many texts were cut, the first time some were.

        Returns:
            float32 [len(texts), D], row i for text i, the same on every mesh up to rounding and
            the same array on every process. All processes must call it with the same texts.

        Raises:
            InputError: a text is not a str or has half of a surrogate pair, an embedding is not
                finite (naming the first row), the model keeps a vector for each token, or
                `max_length` leaves no room behind the prompt.
        """
        texts = arguments.texts(texts, "encode")
        emb_nd = np.empty((len(texts), self.width), np.float32)
        limit = self._texts.limit(kind, max_length)
        full: list[int] = []  # rows with as many tokens as there may be
        for block, rows, emb_bd in self._pooled(texts, kind, max_length, token_budget, progress):
            emb_nd[block.start + rows] = emb_bd
            longest = (row for row in rows.tolist() if len(block.tokens[row]) >= limit)
            full.extend(block.start + row for row in longest)
        if warn and full and (kind, limit) not in self._warned:
            self._warn_cut([texts[row] for row in full], len(texts), kind, limit)
        return emb_nd

    def encoded(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        max_length: int | None = None,
        token_budget: int | None = None,
        wanted: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embeds texts and yields embeddings as they come, not in the order of the texts.

        Args:
            texts, kind, max_length, token_budget: as of `encode`.
            wanted: bool [len(texts)]; None: all. A block of texts without a wanted one is left out,
                the others are encoded whole: an embedding does not depend on what else is wanted.

        Yields:
            rows int32 [B], and their embeddings float32 [B, D], on every process.

        Raises:
            InputError: as `encode`.
        """
        texts = arguments.texts(texts, "encode")
        for block, rows, emb_bd in self._pooled(
            texts, kind, max_length, token_budget, False, wanted, False
        ):
            yield block.start + rows, emb_bd

    def _pooled(self, *how: Any) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """`_encode`, where there is one vector per text."""
        if self.spec.pooling == "tokens":
            raise InputError(
                f"{self.folder}: a late-interaction model has no single vector for a text; use "
                "encode_tokens, or pooling='mean'"
            )
        return self._encode(*how)

    def _warn_cut(self, full: list[str], total: int, kind: str, limit: int) -> None:
        """Says, once for a kind and a length, how many of `total` texts were cut.

        Args:
            full: the texts that fill the length; some may just fit.
        """
        cut = self._texts.longer(full, kind, limit)
        if cut:
            self._warned.add((kind, limit))
            what = {"query": "queries", "passage": "passages"}[kind]
            positions = self.spec.backbone.max_tokens
            more = f"; max_length can be up to {positions}" if limit < positions else ""
            logging.warning(
                "%d of %d %s (%.1f %%) are longer than %d tokens and were cut%s",
                cut,
                total,
                what,
                100 * cut / total,
                limit,
                more,
            )

    def encode_tokens(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """Embeds the tokens of texts with a late-interaction model; arguments as of `encode`.

        Returns:
            for text i, float32 [tokens that count, D]: those of its tokens that are not skipped,
            mask tokens of a lengthened query included.

        Raises:
            InputError: as `encode`; or the model pools.
        """
        texts = arguments.texts(texts, "encode")
        late = self.spec.late
        if late is None:
            raise InputError(
                f"{self.folder}: this model pools its tokens ({self.spec.pooling}); use encode, or "
                "pooling='tokens'"
            )
        out: list[np.ndarray] = [np.empty((0, self.width), np.float32)] * len(texts)
        skipped = self._texts.skipped(kind)

        for block, rows, emb_btd in self._encode(texts, kind, max_length, token_budget, progress):
            for row, emb_td in zip(rows.tolist(), emb_btd, strict=True):
                ids = block.tokens[row]
                out[block.start + row] = emb_td[: len(ids)][~np.isin(ids, skipped)]
        return out

    def _encode(
        self,
        texts: Sequence[str],
        kind: str,
        max_length: int | None,
        token_budget: int | None,
        progress: bool,
        wanted: np.ndarray | None = None,
        few_sizes: bool = True,
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """Yields (block of texts, rows in it, their embeddings) for each step; all are finite."""
        given = {
            "kind": kind,
            "max_length": max_length,
            "token_budget": token_budget,
            "progress": progress,
        }
        options_lib.check_arguments("encode", given, _ENCODE)
        max_length = self._texts.limit(kind, max_length)
        shards = mesh_lib.shards(self.mesh, "batch")
        if token_budget is None:
            token_budget = _token_budget(_platform(self.mesh), self.spec.dtype)

        def prepare(tokens: list[np.ndarray]) -> tuple[list[np.ndarray], list[int], Any]:
            skip = self._texts.unpooled(tokens, kind)
            return *self._texts.expanded(tokens, kind), skip

        stream = Stream(
            functools.partial(self.tokenize, kind=kind, max_length=max_length),
            prepare,
            self._step,
            max_length=max_length,
            token_budget=token_budget * shards,
            multiple_of=shards,
            pad_id=self.tokenizer.pad_id,
            few_sizes=few_sizes,
        )
        bar = progress_lib.bar(
            total=len(texts),
            desc=f"encode {kind}",
            unit=" texts",
            show=progress and mesh_lib.is_main(),
        )
        bad: list[int] = []  # rows of the present block that are not finite
        with bar:
            for block, rows, emb in stream.run(texts, wanted):
                bar.update(len(rows))
                finite = np.isfinite(emb).reshape(len(rows), -1).all(axis=1)
                bad += (block.start + rows[~finite]).tolist()
                if bad and not block.left:
                    raise InputError(
                        f"the embedding of text {min(bad)} is not finite ({len(bad)} such in this "
                        f"block of {len(block.tokens)}); the weights in {self.folder} are "
                        "damaged, or dtype overflows: try dtype='float32'"
                    )
                if not bad:
                    yield block, rows, emb

    @functools.cached_property
    def _operands(self) -> Any:
        """The weights as a step takes them.

        On a CPU casting all kernels takes about a tenth of the time of a narrow step, which is a
        small one there: it is done once. An accelerator casts in the step and keeps the memory.
        """
        dtype = self.spec.dtype
        if _platform(self.mesh) != "cpu" or dtype == self.spec.param_dtype:
            return self._state
        return nnx.from_flat_state(
            [
                (path, value.replace(value[...].astype(dtype)) if "kernel" in path[-1] else value)
                for path, value in nnx.to_flat_state(self._state)
            ]
        )

    def _step(self, batch: Batch, skip_b: np.ndarray | None) -> jax.Array:
        """Dispatches one batch; returns at once, with an array that is still being computed."""

        def put(x: np.ndarray, *axes: str | None) -> jax.Array:
            # Every process holds the whole batch and hands its devices their part.
            target = mesh_lib.sharding(self.mesh, *axes)
            return jax.make_array_from_callback(x.shape, target, lambda index: x[index])

        with jax.set_mesh(self.mesh):  # not longer: who encodes may have another one
            return _embed(
                self._graphdef,
                self._operands,
                put(batch.tokens_bt, "batch", None),
                put(batch.lengths_b, "batch"),
                None if skip_b is None else put(skip_b.astype(np.int32), "batch"),
            )

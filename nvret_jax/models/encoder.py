"""Texts in, embeddings out: a backbone with its pooling, its tokenizer and its prompts.

    encoder = Encoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    emb_nd = encoder.encode(["a text", "another"])

`EmbeddingModel` is what is trained: a Flax module from token ids to vectors. `Encoder` is what is
used: it owns the mesh, reads the folder, and turns any number of texts into one array.

Encoding is a loop over one compiled step per bucket of lengths. How many tokens a step takes is a
property of the device (`TOKENS_PER_DEVICE`): a CPU is fastest when a layer's activations stay in
its cache, an accelerator when its matrix units are full. Results come back one step late, and the
next block of texts is tokenised by a thread meanwhile, so that the device never waits for the host.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.data.batches import Batch, pad_batch, plan_batches
from nvret_jax.data.tokenizer import Tokenizer
from nvret_jax.errors import InputError
from nvret_jax.models import weights
from nvret_jax.models.bert import Bert, Options, check_mesh
from nvret_jax.models.pooling import check_pooling, l2_normalize, pool
from nvret_jax.models.resolve import DEFAULT_MODEL, resolve
from nvret_jax.models.spec import EncoderSpec, check_max_length, read_spec

__all__ = ["DEFAULT_MODEL", "EmbeddingModel", "Encoder", "EncoderSpec"]

# Tokens of one compiled step, per device the batch is split over. On a CPU about a thousand keeps
# a layer's activations in the cache: measured 1.4 times the speed of 4,096. For accelerators the
# number is an estimate, not a measurement: enough to fill the matrix units of a small model, and by
# count about 3 GB of activations for the largest (1,024 wide, 16 heads, 512 tokens, float32).
TOKENS_PER_DEVICE = {"cpu": 1024, "gpu": 65536, "tpu": 65536}
# Texts tokenised, sorted by length and encoded at a time: enough that sorting leaves little
# padding, few enough that the host never holds the tokens of a whole corpus.
BLOCK = 16384


class EmbeddingModel(nnx.Module):
    """Token ids to one vector a text: backbone, pooling, and unit length if `normalize`."""

    def __init__(self, backbone: nnx.Module, *, pooling: str, normalize: bool):
        self.backbone = backbone
        self.pooling = check_pooling(pooling)
        self.normalize = normalize

    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        dropout_keys_b: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds right-padded sequences; call it under `jax.set_mesh`.

        Args:
            tokens_bt: int32 [B, T], sharded over "batch".
            lengths_b: int32 [B], real tokens of each, at least 1.
            dropout_keys_b: typed PRNG keys [B], one an example; None: no dropout.

        Returns:
            float32 [B, D], sharded over "batch".
        """
        hidden_btd = self.backbone(tokens_bt, lengths_b, dropout_keys_b=dropout_keys_b)
        with jax.named_scope("pooling"):
            emb_bd = pool(hidden_btd, lengths_b, self.pooling)
            return l2_normalize(emb_bd) if self.normalize else emb_bd

    def logical_axes(self) -> dict[tuple[str, ...], tuple[str | None, ...]]:
        """Path of each weight in `nnx.state(self)` -> its logical axes at rest."""
        axes = self.backbone.logical_axes()
        return {("backbone", *path): names for path, names in axes.items()}


# One compiled step per (kind of model, shape of batch, mesh), shared by all encoders of the
# process: the weights are an argument, so new ones (`Encoder.replace`) compile nothing.
@functools.partial(jax.jit, static_argnums=0)
def _embed(graphdef: Any, state: Any, tokens_bt: jax.Array, lengths_b: jax.Array) -> jax.Array:
    emb_bd = nnx.merge(graphdef, state)(tokens_bt, lengths_b)
    return jax.reshard(emb_bd, P(None, None))  # whole on every process, to be read there


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("encode expects a sequence of texts, got one str; wrap it in a list")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {row} is {type(text).__name__}, expected str")


class Encoder:
    """A model that turns texts into embeddings, on a mesh.

    Attributes:
        spec: what decides an embedding besides weights and tokenizer.
        tokenizer: the model's own.
        mesh: where the weights lie and the work is done.
        folder: where the model was read from.
        width: D, the length of an embedding.
    """

    def __init__(
        self,
        graphdef: Any,
        state: Any,
        *,
        spec: EncoderSpec,
        tokenizer: Tokenizer,
        mesh: Mesh,
        folder: epath.Path,
        backbone_folder: epath.Path,
        weights_sha256: str | None = None,
    ):
        self._graphdef, self._state = graphdef, state
        self._weights_sha256 = weights_sha256
        self._backbone_folder = backbone_folder
        self.spec, self.tokenizer, self.mesh, self.folder = spec, tokenizer, mesh, folder
        self.width = spec.bert.hidden_size

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
        dropout: float = 0.0,
        remat: bool = False,
        attention: str = "xla",
        download: bool = False,
    ) -> Encoder:
        """Reads a model; see `resolve` for how a name becomes a folder.

        Args:
            name_or_path: a folder, or a hub id.
            mesh: default: all devices, the batch split over them.
            dtype: of the products. 'bfloat16' is the fast one on accelerators; 'float32' is
                float32 everywhere, never TF32.
            param_dtype: of the weights at rest, whatever the file holds.
            max_length, pooling, normalize, query_prompt, passage_prompt: None: as the folder
                says.
            dropout: rate in training; it applies only where the model is called with keys.
            remat: recompute layers in the backward pass.
            attention: an implementation by name.
            download: whether the hub may be asked over the network.

        Raises:
            InputError: no such model, or one we cannot compute; one line saying what to do.
        """
        folder = resolve(name_or_path, download=download)
        mesh = mesh_lib.make_mesh() if mesh is None else mesh
        options = Options(
            dtype=dtype,
            dropout=dropout,
            remat=remat,
            attention=attention,
            wide=_platform(mesh) == "cpu",
        )
        if param_dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"param_dtype={param_dtype!r}: expected float32, bfloat16 or float16")
        spec, backbone_folder = read_spec(
            folder,
            dtype=dtype,
            param_dtype=param_dtype,
            max_length=max_length,
            pooling=pooling,
            normalize=normalize,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
        )
        config = spec.bert
        check_mesh(config, mesh)
        tokenizer = Tokenizer.from_folder(backbone_folder)

        def build() -> EmbeddingModel:
            backbone = Bert(config, options=options, param_dtype=param_dtype, rngs=nnx.Rngs(0))
            return EmbeddingModel(backbone, pooling=spec.pooling, normalize=spec.normalize)

        # Shapes only: no weight exists before it is read from the file.
        abstract = nnx.eval_shape(build)
        graphdef, state = nnx.split(abstract)
        flat = nnx.to_flat_state(state)
        shapes = {path[1:]: variable.shape for path, variable in flat}
        arrays = weights.load(
            backbone_folder, shapes, abstract.backbone.logical_axes(), mesh, dtype=param_dtype
        )
        state = nnx.from_flat_state(
            [(path, variable.replace(arrays[path[1:]])) for path, variable in flat]
        )
        files = weights.weight_files(backbone_folder)
        digest = hashlib.sha256("".join(map(weights.file_sha256, files)).encode()).hexdigest()
        return cls(
            graphdef,
            state,
            spec=spec,
            tokenizer=tokenizer,
            mesh=mesh,
            folder=folder,
            backbone_folder=backbone_folder,
            weights_sha256=digest,
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
            for key, value in weights.to_hf(self.model).items():
                digest.update(key.encode() + value.tobytes())
            self._weights_sha256 = digest.hexdigest()
        content = {
            "weights": self._weights_sha256,
            "tokenizer": self.tokenizer.fingerprint,
            **dataclasses.asdict(self.spec),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def replace(self, state: Any) -> Encoder:
        """This encoder with other weights.

        Args:
            state: as `nnx.split(encoder.model)[1]`: same paths, shapes and shardings. Steps
                compiled for this encoder serve the new one.
        """
        return Encoder(
            self._graphdef,
            state,
            spec=self.spec,
            tokenizer=self.tokenizer,
            mesh=self.mesh,
            folder=self.folder,
            backbone_folder=self._backbone_folder,
        )

    def save_weights_hf(self) -> dict[str, np.ndarray]:
        """HF key -> array: our weights, and what the source had beside them (its pooler).

        All processes must call it. What transformers reads from it is a plain `BertModel` (or
        XLM-R), without a warning where the source gave none.
        """
        tensors = weights.to_hf(self.model)
        extra = weights.carried(self._backbone_folder)
        dtype = jnp.dtype(self.spec.param_dtype)
        return tensors | {key: value.astype(dtype) for key, value in extra.items()}

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
        prompt = self.spec.prompt(kind)
        max_length = self.spec.max_length if max_length is None else max_length
        check_max_length(max_length, self.spec.bert.max_tokens)
        texts = [prompt + text for text in texts]
        if self.spec.lowercase:
            texts = [text.lower() for text in texts]
        tokens = self.tokenizer.encode(texts, max_length)
        vocabulary = self.spec.bert.vocab_size
        highest = max((int(ids.max()) for ids in tokens if ids.size), default=0)
        if highest >= vocabulary:
            raise InputError(
                f"{self.folder}: the tokenizer gives token {highest}, but the model has "
                f"{vocabulary} (config.json: vocab_size); they do not belong together"
            )
        return tokens

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeds texts.

        Args:
            texts: any number; each gets the prompt of its kind before it.
            kind: 'passage' or 'query'.
            max_length: tokens a text is cut to; default: the spec's.
            token_budget: tokens (padding included) of one step per device the batch is split
                over; default by device, see `TOKENS_PER_DEVICE`.
            progress: a bar on the main process.

        Returns:
            float32 [len(texts), D], row i for text i, the same on every mesh up to rounding and
            the same array on every process. All processes must call it with the same texts.

        Raises:
            InputError: a text is not a str, or an embedding is not finite (naming the first row).
        """
        _check_texts(texts)
        max_length = self.spec.max_length if max_length is None else max_length
        check_max_length(max_length, self.spec.bert.max_tokens)
        shards = mesh_lib.shards(self.mesh, "batch")
        if token_budget is None:
            token_budget = TOKENS_PER_DEVICE.get(_platform(self.mesh), 65536)
        if token_budget < 1:
            raise InputError(f"token_budget={token_budget}: expected a positive number of tokens")
        emb_nd = np.empty((len(texts), self.width), np.float32)
        bar = tqdm.tqdm(
            total=len(texts),
            desc=f"encode {kind}",
            unit=" texts",
            disable=not (progress and mesh_lib.is_main()),
        )
        tokenize = functools.partial(self.tokenize, kind=kind, max_length=max_length)
        blocks = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
        with bar, jax.set_mesh(self.mesh), concurrent.futures.ThreadPoolExecutor(1) as thread:
            coming = [thread.submit(tokenize, block) for block in blocks[:1]]
            for number, block in enumerate(blocks):
                tokens = coming.pop().result()
                coming += [thread.submit(tokenize, b) for b in blocks[number + 1 : number + 2]]
                start = number * BLOCK
                out_nd = emb_nd[start : start + len(block)]
                self._encode_block(tokens, out_nd, max_length, token_budget * shards, shards, bar)
                bad = np.flatnonzero(~np.isfinite(out_nd).all(axis=1))
                if bad.size:
                    raise InputError(
                        f"the embedding of text {start + bad[0]} is not finite ({bad.size} such "
                        f"in this block of {len(block)}); the weights in {self.folder} are "
                        "damaged, or dtype overflows: try dtype='float32'"
                    )
        return emb_nd

    def _encode_block(
        self,
        tokens: list[np.ndarray],
        out_nd: np.ndarray,
        max_length: int,
        token_budget: int,
        multiple_of: int,
        bar: tqdm.tqdm,
    ) -> None:
        """Fills `out_nd` with the embeddings of texts, given their tokens."""
        plan = plan_batches(
            [len(ids) for ids in tokens],
            max_length=max_length,
            token_budget=token_budget,
            multiple_of=multiple_of,
        )
        waiting: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

        def fetch() -> None:
            rows, emb_bd = waiting.popleft()
            real = rows >= 0
            out_nd[rows[real]] = np.asarray(emb_bd.addressable_data(0))[real]
            bar.update(int(real.sum()))

        for rows, length in plan:
            batch = pad_batch(tokens, rows, length, self.tokenizer.pad_id)
            waiting.append((batch.rows, self._step(batch)))
            if len(waiting) > 1:
                fetch()
        while waiting:
            fetch()

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

    def _step(self, batch: Batch) -> jax.Array:
        """Dispatches one batch; returns at once, with an array that is still being computed."""

        def put(x: np.ndarray, *axes: str | None) -> jax.Array:
            # Every process holds the whole batch and hands its devices their part.
            target = mesh_lib.sharding(self.mesh, *axes)
            return jax.make_array_from_callback(x.shape, target, lambda index: x[index])

        return _embed(
            self._graphdef,
            self._operands,
            put(batch.tokens_bt, "batch", None),
            put(batch.lengths_b, "batch"),
        )

"""A cross-encoder, for rescoring: reads query and passage together and returns one score.

    scorer = CrossEncoder.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2")
    scorer.score([("a query", "a passage"), ("a query", "another")])

This is `BertForSequenceClassification` of transformers, and its equivalents for RoBERTa, XLM-R and
CamemBERT. The backbone is `models.bert.Bert`; this file adds token types, the head and the pairs.
Choices:

- **Scores are the head's logits.** sentence-transformers applies a sigmoid, which keeps the order
  but compresses margins; logits are often negative, which the mining rules support.
- One label: its logit. Two labels: logit of label 1 minus logit of label 0, the log odds of
  "relevant". More than two labels do not represent relevance and are refused.
- BERT marks the second text by token type; RoBERTa and its descendants do not. If a tokenizer's
  `model_input_names` lacks token_type_ids, all types are 0, as in transformers.
- A pair that is too long is cut as in transformers: tokens are removed from the longer text.
- The head is computed in float32 and replicated on every device; it is at most a few MB.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.data.normalize import half_pair
from nvret_jax.errors import InputError
from nvret_jax.models.attention.kernels import check_platform
from nvret_jax.models.backbones.bert import (
    OFFSET_POSITIONS,
    Bert,
    BertConfig,
    Embeddings,
    check_mesh,
)
from nvret_jax.models.backbones.blocks import lookup
from nvret_jax.models.backbones.layer import Options, Weights, layer_norm
from nvret_jax.models.batched import Batched
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.folder import Fields, inside, read_object, shown
from nvret_jax.models.pretrained.resolve import resolve
from nvret_jax.models.pretrained.spec import check_max_length
from nvret_jax.models.pretrained.tokenizer import Tokenizer

MAX_LENGTH = 512  # the default
_TOKENIZED = 1024  # pairs tokenised at a time
# A token and its type are packed into one number, so that a batch of pairs is like any other batch.
_TYPE = 1 << 24

# The two heads: HF's name of the inner layer (after the backbone's prefix or not) and the outer.
BERT_HEAD = (r"(bert\.)?pooler\.dense", r"classifier")
ROBERTA_HEAD = (r"classifier\.dense", r"classifier\.out_proj")


class PairTokenizer(Tokenizer):
    """The model's tokenizer, for pairs."""

    @property
    def has_types(self) -> bool:
        """Whether the model gets token types."""
        fields = Fields(self._config)
        names = fields.texts("model_input_names", None)
        fields.check(f"{self._folder}/tokenizer_config.json")
        return names is None or "token_type_ids" in names

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[np.ndarray]:
        """Tokens of each pair, special tokens included, as token + type × 2^24, int32.

        Args:
            pairs: (query, passage).
            max_length: limit in tokens; the longer text is cut first.

        Raises:
            InputError: `max_length` leaves no space for the special tokens.
        """
        backend = self._backend
        specials = backend.num_special_tokens_to_add(True)
        if max_length <= specials:
            raise InputError(
                f"max_length={max_length}: a pair has {specials} special tokens, so it must be at "
                f"least {specials + 1}"
            )
        found = []
        cut = {"strategy": "longest_first"}
        pairs = [tuple(pair) for pair in pairs]
        for encoding in self._encodings(pairs, max_length, _TOKENIZED, **cut):
            ids = np.asarray(encoding.ids, np.int32)
            found.append(ids + np.asarray(encoding.type_ids, np.int32) * _TYPE)
        return found


class PairEmbeddings(Embeddings):
    """`Embeddings` of tokens packed with their type; see `_TYPE`."""

    def __call__(self, packed_bt: jax.Array, config: BertConfig) -> jax.Array:
        """int32 [B, T] -> float32 [B, T, D]."""
        tokens_bt, types_bt = packed_bt % _TYPE, packed_bt // _TYPE
        out = mesh_lib.spec("batch", None, None)
        hidden_btd = lookup(self.word[...], tokens_bt)
        types_btd = (
            self._use("token_type", jnp.float32)
            .at[jax.reshard(types_bt, mesh_lib.spec("batch", None))]
            .get(out_sharding=out, mode="clip")
        )
        first = config.position_offset
        position_td = self._use("position", jnp.float32)[first : first + packed_bt.shape[1]]
        scale_d = self._use("norm_scale", jnp.float32)
        bias_d = self._use("norm_bias", jnp.float32)
        hidden_btd = hidden_btd + types_btd + position_td
        return layer_norm(hidden_btd, scale_d, bias_d, config.layer_norm_eps)


class PairBert(Bert):
    """`Bert` for pairs, whose tokens are packed with their type."""

    def __init__(self, config: BertConfig, *, options: Options, param_dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, options=options, param_dtype=param_dtype, rngs=rngs)
        self.embeddings = PairEmbeddings(config, param_dtype=param_dtype, rngs=rngs)


class Head(Weights):
    """From the first token's vector to one number: dense, tanh, dense."""

    AXES: ClassVar = {
        "dense_kernel": (None, None),  # [D, D]
        "dense_bias": (None,),
        "out_kernel": (None, None),  # [D, labels]
        "out_bias": (None,),
    }

    def __init__(self, width: int, labels: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.dense_kernel = nnx.Param(normal(rngs.params(), (width, width), jnp.float32))
        self.dense_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.out_kernel = nnx.Param(normal(rngs.params(), (width, labels), jnp.float32))
        self.out_bias = nnx.Param(jnp.zeros((labels,), jnp.float32))

    def __call__(self, hidden_btd: jax.Array) -> jax.Array:
        """float32 [B, T, D] -> float32 [B]."""
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        first_bd = hidden_btd[:, 0].astype(jnp.float32)
        inner_bd = product("bd,de->be", first_bd, self.dense_kernel[...]) + self.dense_bias[...]
        logits_bc = product("bd,dc->bc", jnp.tanh(inner_bd), self.out_kernel[...])
        logits_bc = logits_bc + self.out_bias[...]
        return logits_bc[:, 0] if logits_bc.shape[1] == 1 else logits_bc[:, 1] - logits_bc[:, 0]


class PairModel(nnx.Module):
    """Tokens of pairs to one score each."""

    def __init__(self, backbone: PairBert, head: Head):
        self.backbone, self.head = backbone, head

    def __call__(self, packed_bt: jax.Array, lengths_b: jax.Array) -> jax.Array:
        """Scores right-padded pairs; call it under `jax.set_mesh`.

        Args:
            packed_bt: int32 [B, T], token + type × 2^24, sharded over "batch".
            lengths_b: int32 [B], real tokens of each, at least 1.

        Returns:
            float32 [B], sharded over "batch".
        """
        hidden_btd = self.backbone(packed_bt, lengths_b)
        with jax.named_scope("head"):
            return self.head(hidden_btd)


class CrossEncoder:
    """A model that scores pairs of texts, on a mesh.

    Attributes:
        config: the shape of the backbone.
        labels: 1 or 2.
        max_length: tokens to which a pair is cut.
        tokenizer: the model's own.
        mesh: of the weights and the computation.
        folder: that the model was read from.
        fingerprint: sha256, hex, of everything that affects a score.
    """

    def __init__(
        self,
        graphdef: Any,
        state: Any,
        *,
        config: BertConfig,
        labels: int,
        max_length: int,
        tokenizer: PairTokenizer,
        mesh: Mesh,
        folder: epath.Path,
        fingerprint: str,
    ):
        """Use `from_pretrained`."""
        self._graphdef, self._state = graphdef, state
        self.config, self.labels, self.max_length = config, labels, max_length
        self.tokenizer, self.mesh, self.folder = tokenizer, mesh, folder
        self.fingerprint = fingerprint
        self._typed = tokenizer.has_types and config.position_offset == 0

    def __repr__(self) -> str:
        return (
            f"CrossEncoder({str(self.folder)[-80:]!r}: {self.config.num_hidden_layers} layers, "
            f"{self.config.hidden_size} wide, pairs cut at {self.max_length} tokens)"
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        param_dtype: str = "float32",
        max_length: int | None = None,
        attention: str = "auto",
        download: bool = False,
    ) -> CrossEncoder:
        """Reads a model; see `resolve` for how a name becomes a folder.

        Args:
            name_or_path: a folder, or a hub id.
            mesh: default: all devices, the batch split over them.
            dtype: of the backbone's products; 'bfloat16' is fast on accelerators.
            param_dtype: of the backbone's stored weights.
            max_length: tokens to which a pair is cut; default 512, or less if the tokenizer or the
                model's positions require it.
            attention: of `options.ATTENTION`; see `Encoder.from_pretrained`.
            download: whether the hub may be accessed over the network.

        Raises:
            InputError: no such model, or one that does not score pairs; one line that says what to
                do.
        """
        folder = resolve(name_or_path, download=download)
        mesh = mesh_lib.given(mesh)
        content, config = _read_config(folder)
        check_mesh(config, mesh)
        tokenizer = PairTokenizer.from_folder(folder)
        if max_length is None:
            max_length = min(MAX_LENGTH, tokenizer.max_length or MAX_LENGTH, config.max_tokens)
        check_max_length(max_length, config.max_tokens)
        roberta = OFFSET_POSITIONS[content["model_type"]]
        head = _read_head(folder, config.hidden_size, ROBERTA_HEAD if roberta else BERT_HEAD)
        labels = head["out_kernel"].shape[1]
        options = Options(dtype=dtype, attention=attention)
        check_platform(attention, platforms.of(mesh))

        def build() -> PairModel:
            rngs = nnx.Rngs(0)
            backbone = PairBert(config, options=options, param_dtype=param_dtype, rngs=rngs)
            return PairModel(backbone, Head(config.hidden_size, labels, rngs=rngs))

        abstract = nnx.eval_shape(build)  # shapes only: no weight exists before it is read
        graphdef, state = nnx.split(abstract)
        flat = nnx.to_flat_state(state)
        shapes = {path[1:]: value.shape for path, value in flat if path[0] == "backbone"}
        arrays = weights.load(
            folder, shapes, abstract.backbone.logical_axes(), mesh, dtype=param_dtype
        )
        arrays = {("backbone", *path): array for path, array in arrays.items()}
        for name, value in head.items():
            where = mesh_lib.sharding(mesh, *Head.AXES[name])
            arrays["head", name] = jax.make_array_from_callback(
                value.shape, where, lambda index, value=value: value[index]
            )
        state = nnx.from_flat_state(
            [(path, variable.replace(arrays[path])) for path, variable in flat]
        )
        files = [weights.file_sha256(file) for file in weights.weight_files(folder)]
        decides = [files, tokenizer.fingerprint, tokenizer.has_types, content, max_length, dtype]
        decides.append(param_dtype)
        return cls(
            graphdef,
            state,
            config=config,
            labels=labels,
            max_length=max_length,
            tokenizer=tokenizer,
            mesh=mesh,
            folder=folder,
            fingerprint=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        )

    @property
    def model(self) -> PairModel:
        """The module with this scorer's own arrays (nothing is copied)."""
        return nnx.merge(self._graphdef, self._state)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        token_budget: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Scores pairs of texts.

        Args:
            pairs: (query, passage), any number, in any order: they are batched by length.
            token_budget: tokens (padding included) of one step per device the batch is split
                over; default by device.
            progress: a bar on the main process.

        Returns:
            float32 [len(pairs)], raw logits, number i for pair i; the same array on every process.
            All processes must call it with the same pairs.

        Raises:
            InputError: a pair is not two strings, or a score is not finite (naming the pair).
        """
        _check_pairs(pairs)
        if token_budget is not None and token_budget < 1:
            raise InputError(f"token_budget={token_budget}: expected a positive number of tokens")
        batched = Batched(
            self.mesh,
            (self._graphdef, self._state),
            self.tokenize,
            max_length=self.max_length,
            pad_id=self.tokenizer.pad_id,
            token_budget=token_budget,
            noun="the score of pair",
            folder=self.folder,
        )
        scores = np.empty(len(pairs), np.float32)
        bar = ("score pairs", " pairs") if progress else None
        for block, rows, scores_b in batched.run(pairs, bar=bar):
            scores[block.start + rows] = scores_b
        return scores

    def tokenize(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """Tokens of pairs with their types, from `PairTokenizer.encode_pairs`.

        Raises:
            InputError: the tokenizer has more tokens than the model.
        """
        tokens = self.tokenizer.encode_pairs(pairs, self.max_length)
        if not self._typed:
            tokens = [packed % _TYPE for packed in tokens]
        highest = max((int((packed % _TYPE).max()) for packed in tokens), default=0)
        if highest >= self.config.vocab_size:
            raise InputError(
                f"{self.folder}: the tokenizer gives token {highest}, but the model has "
                f"{self.config.vocab_size} (config.json: vocab_size); they do not match"
            )
        return tokens


def _read_config(folder: epath.Path) -> tuple[dict[str, Any], BertConfig]:
    """config.json, unchanged and parsed."""
    path = inside(folder, "config.json")
    if not path.exists():
        raise InputError(f"{folder}: no config.json; it does not hold a cross-encoder")
    content = read_object(folder, "config.json")
    fields = Fields(content)
    kind = fields.text("model_type", None)
    fields.only("quantization_config", ())
    fields.check(path)
    if kind not in OFFSET_POSITIONS:
        raise InputError(
            f"{path}: model_type={shown(kind)}; cross-encoders of {', '.join(OFFSET_POSITIONS)} "
            "are supported"
        )
    config = BertConfig.from_hf(content, str(path))
    if config.vocab_size > _TYPE:
        raise InputError(f"{path}: vocab_size={config.vocab_size}; at most {_TYPE} is supported")
    return content, config


def _read_head(folder: epath.Path, width: int, names: tuple[str, str]) -> dict[str, np.ndarray]:
    """The weights of `Head`, float32; InputError unless the checkpoint has exactly such a head."""
    with weights.Checkpoint(folder) as checkpoint:
        found: dict[str, np.ndarray] = {}
        for ours, name in zip(("dense", "out"), names, strict=True):
            for part in ("weight", "bias"):
                keys = [k for k in checkpoint.shapes if re.fullmatch(rf"{name}\.{part}", k)]
                if not keys:
                    plain = re.sub(r"[\\()?]", "", name)
                    raise InputError(
                        f"{checkpoint.name}: no {plain}.{part}; expected the head of a sequence "
                        f"classification model, which an embedding model lacks"
                    )
                value = checkpoint.read(keys[0]).astype(np.float32)
                found[f"{ours}_{'kernel' if part == 'weight' else 'bias'}"] = np.ascontiguousarray(
                    value.T
                )
        labels = found["out_kernel"].shape[-1]
        if labels not in (1, 2):
            raise InputError(
                f"{checkpoint.name}: a head of {labels} labels; expected 1 (a relevance score) or "
                "2 (not relevant, relevant)"
            )
        expected = {
            "dense_kernel": (width, width),
            "dense_bias": (width,),
            "out_kernel": (width, labels),
            "out_bias": (labels,),
        }
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise InputError(
                    f"{checkpoint.name}: the head's {name} is {found[name].shape}, expected {shape}"
                )
    return found


def _check_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    for number, pair in enumerate(pairs):
        texts = isinstance(pair, tuple | list) and len(pair) == 2
        if not texts or not all(isinstance(text, str) for text in pair):
            raise InputError(f"pair {number} is {str(pair)[:60]!r}; expected (query, passage)")
        if half := half_pair(pair[0]) or half_pair(pair[1]):
            raise InputError(f"pair {number} has {half}, which is not valid Unicode; remove it")

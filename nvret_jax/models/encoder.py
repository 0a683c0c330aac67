"""Texts in, embeddings out: a backbone with its pooling, its tokenizer and its prompts.

    encoder = Encoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    emb_nd = encoder.encode(["a text", "another"])

An `Encoder` is a `LoadedModel` (loaded.py) that turns any number of texts into one array; for
late-interaction models `encode_tokens` gives one array per text. How texts are batched and go
through the model is the same for all models: batched.py.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from flax import nnx

from nvret_jax import options as options_lib
from nvret_jax import platforms
from nvret_jax.data import arguments
from nvret_jax.errors import InputError
from nvret_jax.models.batched import Batched, Block
from nvret_jax.models.embedding_model import EmbeddingModel
from nvret_jax.models.loaded import LoadedModel
from nvret_jax.models.lora import LoraConfig
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL
from nvret_jax.models.pretrained.spec import EncoderSpec
from nvret_jax.models.tokenize import TextTokens

__all__ = ["DEFAULT_MODEL", "EmbeddingModel", "Encoder", "EncoderSpec", "LoraConfig"]

_ENCODE = {
    "kind": options_lib.choice("passage", "query"),
    "max_length": options_lib.whole(1, what="tokens", unset=True),
    "token_budget": options_lib.whole(1, what="tokens", unset=True),
    "progress": options_lib.flag(),
}


class Encoder(LoadedModel):
    """A model that turns texts into embeddings, on a mesh; see `LoadedModel` for its attributes."""

    @functools.cached_property
    def _texts(self) -> TextTokens:
        return TextTokens(self.spec, self.tokenizer, self.folder)

    @functools.cached_property
    def _warned(self) -> set[tuple[str, int]]:
        """(kind, length) of cuts that were reported."""
        return set()

    def __repr__(self) -> str:
        spec = self.spec
        prompts = [kind for kind in ("query", "passage") if spec.prompt(kind)]
        return (
            f"Encoder({os.fspath(self.folder)[-80:]!r}: {spec.architecture['model_type']}, "
            f"{self.width} wide, {spec.pooling} pooling, texts cut at {spec.max_length} tokens, "
            f"prompts for {' and '.join(prompts) or 'nothing'}, {spec.dtype}, "
            f"{self.mesh.size} device{'s' if self.mesh.size > 1 else ''})"
        )

    def unpooled(self, tokens: Sequence[np.ndarray], kind: str) -> np.ndarray | None:
        """How many tokens at the beginning of each text are its prompt's and not pooled.

        Args:
            tokens: as `tokenize` gives them.
            kind: 'passage' or 'query'.

        Returns:
            int32 [len(tokens)], less than the tokens of each: at least one is pooled. None where
            prompts are pooled, too. See `unpooled` of `EmbeddingModel`.
        """
        return self._texts.unpooled(tokens, kind)

    def joined_prompt(self, kind: str) -> str | None:
        """The unpooled prompt whose last token joins the text's first word; None: it does not.

        This package pools that word. sentence-transformers counts the prompt by itself and leaves
        it out, also in an exported folder.
        """
        return self._texts.joined_prompt(kind)

    def skiplist(self, kind: str) -> list[int]:
        """Ids of the tokens whose vectors do not count; none where tokens are pooled."""
        return [] if self.spec.late is None else self._texts.skiplist(kind)

    def expand(self, tokens: list[np.ndarray], kind: str) -> tuple[list[np.ndarray], list[int]]:
        """(tokens that get a vector, how many of them others see), text by text.

        They differ if a late-interaction model expands queries with mask tokens that attend to the
        query but are not attended to.
        """
        return self._texts.expand(tokens, kind)

    def tokenize(
        self, texts: Sequence[str], *, kind: str = "passage", max_length: int | None = None
    ) -> list[np.ndarray]:
        """Token ids of texts, prompt and special tokens included.

        Args:
            texts, kind, max_length: as in `encode`.

        Returns:
            int32 arrays of 1..max_length ids, text by text.

        Raises:
            InputError: the tokenizer has more tokens than the model.
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
                over; default by platform, see `platforms.PLATFORMS`.
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
            mask tokens of an expanded query included.

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
        skipped = self._texts.skiplist(kind)

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

        def prepare(tokens: list[np.ndarray]) -> tuple[list[np.ndarray], list[int], Any]:
            unpooled = self._texts.unpooled(tokens, kind)
            return *self._texts.expand(tokens, kind), unpooled

        batched = Batched(
            self.mesh,
            (self._graphdef, self._operands),
            functools.partial(self.tokenize, kind=kind, max_length=max_length),
            max_length=max_length,
            pad_id=self.tokenizer.pad_id,
            prepare=prepare,
            token_budget=token_budget,
            dtype=self.spec.dtype,
            few_sizes=few_sizes,
            folder=self.folder,
        )
        return batched.run(texts, wanted, bar=(f"encode {kind}", " texts") if progress else None)

    @functools.cached_property
    def _operands(self) -> Any:
        """The weights as a step takes them.

        On a CPU casting all kernels takes about a tenth of the time of a narrow step, which is a
        small one there: it is done once. An accelerator casts in the step and keeps the memory.
        """
        dtype = self.spec.dtype
        if platforms.of(self.mesh) != "cpu" or dtype == self.spec.param_dtype:
            return self._state
        return nnx.from_flat_state(
            [
                (path, value.replace(value[...].astype(dtype)) if "kernel" in path[-1] else value)
                for path, value in nnx.to_flat_state(self._state)
            ]
        )

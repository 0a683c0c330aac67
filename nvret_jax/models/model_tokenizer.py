"""From texts to the tokens a model wants: its prompts, its limits, and what it adds.

Beyond what a tokenizer.json does there are:

- An end token, for decoders whose last token is their vector and whose file does not add one.
- Late interaction: a marker for queries and one for passages behind the first token, and mask
  tokens that lengthen a query ("query expansion", ColBERT §3.2).
- How many tokens a prompt takes, for poolings that leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.data.tokenizer import Tokenizer
from nvret_jax.errors import InputError
from nvret_jax.models.spec import EncoderSpec, check_max_length

_UNLIMITED = 1 << 20


class ModelTokenizer(Tokenizer):
    """The tokenizer of an encoder."""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text; None where the vocabulary has no such token."""
        return self._backend.token_to_id(token)

    def special(self, *names: str) -> int:
        """The id of a special token by its role ('eos_token'); of several, the first there is.

        Raises:
            InputError: the tokenizer has none of them.
        """
        for name in names:
            token: Any = self._config.get(name)
            if isinstance(token, dict):  # {"content": "[MASK]", "lstrip": …}
                token = token.get("content")
            found = None if token is None else self.token_id(token)
            if found is not None:
                return found
        raise InputError(
            f"{self._folder}: the model needs a {' or '.join(names)}, and tokenizer_config.json "
            "names none that tokenizer.json knows; add one"
        )

    def encode_with(
        self,
        texts: Sequence[str],
        max_length: int,
        *,
        marker: int | None = None,
        end: int | None = None,
    ) -> list[np.ndarray]:
        """`encode`, with a marker behind the first token and an end token behind the last.

        Both count among the `max_length` tokens, and the text is cut for them. An end token that
        is there already is not added again.
        """
        room = max_length - (marker is not None) - (end is not None)
        out = []
        for ids in self.encode(texts, room):
            if marker is not None:
                ids = np.insert(ids, min(1, len(ids)), marker)
            if end is not None and (not len(ids) or ids[-1] != end):
                ids = np.append(ids, np.int32(end))
            out.append(ids)
        return out

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens at the beginning of a text that are its prompt's, special ones included.

        Counted on the prompt alone, as sentence-transformers does: where its end would merge with
        the text into one token, the count is of the prompt by itself.
        """
        if not prompt:
            return 0
        ids = self.encode([prompt], _UNLIMITED)[0]
        specials = self.encode([""], _UNLIMITED)[0]
        return len(ids) - int(ids[-1] in specials)


class TextTokens:
    """Texts of a kind ('query', 'passage') to tokens, as a spec says."""

    def __init__(self, spec: EncoderSpec, tokenizer: ModelTokenizer, folder: epath.Path):
        self._spec, self._tokenizer, self._folder = spec, tokenizer, folder

    def limit(self, kind: str, max_length: int | None) -> int:
        """Tokens a text of this kind is cut to; InputError for more than the model can take."""
        max_length = self._spec.max_length if max_length is None else max_length
        check_max_length(max_length, self._spec.backbone.max_tokens)
        late = self._spec.late
        return max_length if late is None else late.max_length(kind, max_length)

    def tokenize(
        self, texts: Sequence[str], kind: str, max_length: int | None = None
    ) -> list[np.ndarray]:
        """See `Encoder.tokenize`."""
        max_length = self.limit(kind, max_length)
        prepared = self._prepared(texts, kind)
        tokens = self._tokenizer.encode_with(prepared, max_length, **self._added(kind))
        vocabulary = self._spec.backbone.vocab_size
        highest = max((int(ids.max()) for ids in tokens if ids.size), default=0)
        if highest >= vocabulary:
            raise InputError(
                f"{self._folder}: the tokenizer gives token {highest}, but the model has "
                f"{vocabulary} (config.json: vocab_size); they do not belong together"
            )
        if self._expands(kind) and self._spec.late.expand_attend:
            return self._lengthened(tokens)
        return tokens

    def longer(self, texts: Sequence[str], kind: str, max_length: int | None = None) -> int:
        """How many of the texts `tokenize` cuts: they have more tokens than it leaves room for."""
        taken = sum(token is not None for token in self._added(kind).values())
        room = self.limit(kind, max_length) - taken
        tokens = self._tokenizer.encode(self._prepared(texts, kind), room + 1)
        return sum(len(ids) > room for ids in tokens)

    def _prepared(self, texts: Sequence[str], kind: str) -> list[str]:
        """The texts as the tokenizer sees them."""
        prompt = self._spec.prompt(kind)
        texts = [prompt + text for text in texts]
        return [text.lower() for text in texts] if self._spec.lowercase else texts

    def expanded(self, tokens: list[np.ndarray], kind: str) -> tuple[list[np.ndarray], list[int]]:
        """(tokens that get a vector, how many of them are seen by others), text by text.

        They differ where a late-interaction model lengthens queries with mask tokens that see the
        query and are not seen.
        """
        seen = [len(ids) for ids in tokens]
        if self._expands(kind) and not self._spec.late.expand_attend:
            tokens = self._lengthened(tokens)
        return tokens, seen

    def skipped(self, kind: str) -> list[int]:
        """Ids of tokens whose vectors do not count in a late-interaction model."""
        late = self._spec.late
        if late is None or kind not in late.skip_kinds:
            return []
        found = (self._tokenizer.token_id(word) for word in late.skip_words)
        return [identifier for identifier in found if identifier is not None]

    def unpooled(self, kind: str) -> int | None:
        """See `Encoder.prompt_tokens`."""
        if self._spec.prompt_in_pooling == "all":
            return None
        count = self._tokenizer.prompt_tokens(self._spec.prompt(kind))
        return max(0, count - (self._spec.prompt_in_pooling == "last"))

    def _expands(self, kind: str) -> bool:
        late = self._spec.late
        return kind == "query" and late is not None and late.expand_to is not None

    def _added(self, kind: str) -> dict[str, int | None]:
        """The tokens a text of this kind gets beside its own."""
        end = self._tokenizer.special("eos_token") if self._spec.append_eos else None
        name = self._spec.late.marker(kind) if self._spec.late else ""
        # PyLate keeps its markers as tokens with the space that follows them.
        found = [self._tokenizer.token_id(text) for text in (name, name.strip()) if text]
        marker = next((identifier for identifier in found if identifier is not None), None)
        if name and marker is None:
            raise InputError(
                f"{self._folder}: the marker {name!r} of a {kind} is not a token of the "
                "tokenizer; write it into the prompts instead"
            )
        return {"marker": marker, "end": end}

    def _lengthened(self, tokens: list[np.ndarray]) -> list[np.ndarray]:
        late = self._spec.late
        if late.expansion_token is None:
            mask = self._tokenizer.special("mask_token", "eos_token")
        else:
            mask = self._tokenizer.token_id(late.expansion_token)
        if mask is None:
            raise InputError(
                f"{self._folder}: query_expansion: {late.expansion_token!r} is not a token of the "
                "tokenizer"
            )
        return [
            np.append(ids, np.full(max(0, late.expand_to - len(ids)), mask, np.int32))
            for ids in tokens
        ]

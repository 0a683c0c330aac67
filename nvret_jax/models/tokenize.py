"""From texts to a model's tokens: its prompts, its limits, and the tokens it adds.

In addition to a tokenizer.json there are:

- An end token, for decoders with last-token pooling whose file does not add one.
- Late interaction: a marker for queries and one for passages after the first token, and mask tokens
  that expand a query ("query expansion", ColBERT §3.2).
- The tokens of the prompt, for poolings that leave it out: the common prefix of the text's tokens
  and those of the prompt alone. If a prompt ends in a space, many tokenizers join that space and
  the text's first word into one token, which belongs to the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.pretrained.folder import shown
from nvret_jax.models.pretrained.spec import EncoderSpec, check_max_length
from nvret_jax.models.pretrained.tokenizer import Tokenizer

_UNLIMITED = 1 << 20


class ModelTokenizer(Tokenizer):
    """The tokenizer of an encoder."""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text; None if the vocabulary has no such token."""
        return self._backend.token_to_id(token)

    def special(self, *names: str) -> int:
        """The id of a special token by its role ('eos_token'); the first that exists.

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
            f"{self._folder}: the model needs a {' or '.join(names)}, but tokenizer_config.json "
            f"names none that tokenizer.json has; add one"
        )

    def encode_with(
        self,
        texts: Sequence[str],
        max_length: int,
        *,
        marker: int | None = None,
        end: int | None = None,
    ) -> list[np.ndarray]:
        """`encode`, with a marker after the first token and an end token after the last.

        Both count towards the `max_length` tokens, and the text is cut for them. An existing end
        token is not added again.
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

    def prompt_ids(self, prompt: str) -> np.ndarray:
        """Tokens of the prompt alone, int32, with special tokens before but not after it."""
        if not prompt:
            return np.empty(0, np.int32)
        ids = self.encode([prompt], _UNLIMITED)[0]
        specials = self.encode([""], _UNLIMITED)[0]
        return ids[: len(ids) - int(ids[-1] in specials)]


def common_prefix(tokens: Sequence[np.ndarray], prefix: np.ndarray) -> np.ndarray:
    """The length of the common prefix of each text and `prefix`, in tokens; int32 [texts]."""
    out = np.empty(len(tokens), np.int32)
    for row, ids in enumerate(tokens):
        differs = ids[: len(prefix)] != prefix[: len(ids)]
        out[row] = differs.argmax() if differs.any() else len(differs)
    return out


class TextTokens:
    """From texts of a kind ('query', 'passage') to tokens, by a spec."""

    def __init__(self, spec: EncoderSpec, tokenizer: ModelTokenizer, folder: epath.Path):
        self._spec, self._tokenizer, self._folder = spec, tokenizer, folder

    def limit(self, kind: str, max_length: int | None) -> int:
        """Tokens to which a text of this kind is cut.

        Raises:
            InputError: more than the model supports, or too few for the prompt and a text.
        """
        max_length = self._spec.max_length if max_length is None else max_length
        check_max_length(max_length, self._spec.backbone.max_tokens)
        late = self._spec.late
        limit = max_length if late is None else late.max_length(kind, max_length)
        prompt = self._spec.prompt(kind)
        if prompt and limit <= (taken := self.taken(kind)):
            raise InputError(
                f"{self._folder}: max_length={limit}, but the prompt {shown(prompt)} of a {kind} "
                f"alone takes {taken} tokens; raise the length"
            )
        return limit

    def taken(self, kind: str) -> int:
        """Number of tokens added to a text of this kind: the prompt, special ones."""
        prompt = [self._prompt(kind)]
        return len(self._tokenizer.encode_with(prompt, _UNLIMITED, **self._added(kind))[0])

    def _prompt(self, kind: str) -> str:
        """A prompt in the form for the tokenizer."""
        prompt = self._spec.prompt(kind)
        return prompt.lower() if self._spec.lowercase else prompt

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
                f"{vocabulary} (config.json: vocab_size); they do not match"
            )
        if self._expands(kind) and self._spec.late.expand_attend:
            return self._expanded(tokens)
        return tokens

    def longer(self, texts: Sequence[str], kind: str, max_length: int | None = None) -> int:
        """How many of the texts `tokenize` cuts, because they have too many tokens."""
        taken = sum(token is not None for token in self._added(kind).values())
        room = self.limit(kind, max_length) - taken
        tokens = self._tokenizer.encode(self._prepared(texts, kind), room + 1)
        return sum(len(ids) > room for ids in tokens)

    def _prepared(self, texts: Sequence[str], kind: str) -> list[str]:
        """The texts in the form for the tokenizer."""
        prompt = self._spec.prompt(kind)
        texts = [prompt + text for text in texts]
        return [text.lower() for text in texts] if self._spec.lowercase else texts

    def expand(self, tokens: list[np.ndarray], kind: str) -> tuple[list[np.ndarray], list[int]]:
        """(tokens that get a vector, how many of them are attended to), text by text.

        They differ if a late-interaction model expands queries with mask tokens that attend to the
        query but are not attended to.
        """
        seen = [len(ids) for ids in tokens]
        if self._expands(kind) and not self._spec.late.expand_attend:
            tokens = self._expanded(tokens)
        return tokens, seen

    def skiplist(self, kind: str) -> list[int]:
        """Ids of tokens whose vectors do not count in a late-interaction model."""
        late = self._spec.late
        if late is None or kind not in late.skip_kinds:
            return []
        found = (self._tokenizer.token_id(word) for word in late.skip_words)
        return [identifier for identifier in found if identifier is not None]

    def unpooled(self, tokens: Sequence[np.ndarray], kind: str) -> np.ndarray | None:
        """See `Encoder.unpooled`."""
        if self._spec.prompt_in_pooling == "all":
            return None
        prompt = self._tokenizer.prompt_ids(self._prompt(kind))
        most = max(0, len(prompt) - (self._spec.prompt_in_pooling == "last"))
        lengths = np.asarray([len(ids) for ids in tokens], np.int32)
        # A text without a word keeps its last token: an empty mean is not a vector.
        return np.minimum(common_prefix(tokens, prompt[:most]), np.maximum(lengths - 1, 0))

    def joined_prompt(self, kind: str) -> str | None:
        """The prompt, if it is not pooled and its last token joins the text's first word.

        sentence-transformers tokenises such a prompt alone and leaves that word out.
        """
        prompt = self._prompt(kind)
        if self._spec.prompt_in_pooling == "all" or not prompt:
            return None
        alone = self._tokenizer.prompt_ids(prompt)
        with_text = self._tokenizer.encode([prompt + "a"], _UNLIMITED)
        joins = common_prefix(with_text, alone)[0] < len(alone)
        return self._spec.prompt(kind) if joins else None

    def _expands(self, kind: str) -> bool:
        late = self._spec.late
        return kind == "query" and late is not None and late.expand_to is not None

    def _added(self, kind: str) -> dict[str, int | None]:
        """The tokens that are added to a text of this kind."""
        end = self._tokenizer.special("eos_token") if self._spec.append_eos else None
        name = self._spec.late.marker(kind) if self._spec.late else ""
        # PyLate's markers are tokens that include the following space.
        found = [self._tokenizer.token_id(text) for text in (name, name.strip()) if text]
        marker = next((identifier for identifier in found if identifier is not None), None)
        if name and marker is None:
            raise InputError(
                f"{self._folder}: the marker {name!r} of a {kind} is not a token of the "
                f"tokenizer; write it into the prompts instead"
            )
        return {"marker": marker, "end": end}

    def _expanded(self, tokens: list[np.ndarray]) -> list[np.ndarray]:
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

"""How a late-interaction model (ColBERT, PyLate, LateOn-Code) prepares its two kinds of text.

Each token keeps its vector, and the two sides differ: a marker token tells queries from passages,
short queries are lengthened with mask tokens whose vectors count ("query expansion"), and some
tokens of passages (punctuation) do not count. PyLate writes these settings at the top of
config_sentence_transformers.json, sentence-transformers from 6.0 in sentence_bert_config.json and
in the config of its MultiVectorMask; both are read.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from nvret_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LateInteraction:
    """The settings.

    Attributes:
        query_marker, passage_marker: text of a token put behind the first one; '' for none.
        query_length, passage_length: tokens a text is cut to; None: the model's max_length.
        expand_to: queries get mask tokens up to this length; None: no expansion.
        expand_fixed: whether longer queries are cut to `expand_to`.
        expand_attend: whether the other tokens see the mask tokens.
        expansion_token: None: the mask token, or the end token where there is none.
        skip_words: tokens that do not count, by their text.
        skip_kinds: the kinds of text in which they do not.
    """

    query_marker: str = ""
    passage_marker: str = ""
    query_length: int | None = None
    passage_length: int | None = None
    expand_to: int | None = None
    expand_fixed: bool = True
    expand_attend: bool = False
    expansion_token: str | None = None
    skip_words: tuple[str, ...] = ()
    skip_kinds: tuple[str, ...] = ("passage",)

    def marker(self, kind: str) -> str:
        return self.query_marker if kind == "query" else self.passage_marker

    def max_length(self, kind: str, limit: int) -> int:
        """Tokens a text of this kind is cut to, given the model's limit."""
        if kind == "query" and self.expand_to is not None and self.expand_fixed:
            return min(limit, self.expand_to)
        own = self.query_length if kind == "query" else self.passage_length
        return limit if own is None else min(limit, own)


_PYLATE = (
    "query_prefix",
    "document_prefix",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "skiplist_words",
)


def is_late_interaction(shared: Mapping[str, Any]) -> bool:
    """Whether a folder's config_sentence_transformers.json says so."""
    scored = str(shared.get("similarity_fn_name") or "").lower() == "maxsim"
    return scored or shared.get("model_type") in ("ColBERT", "MultiVectorEncoder")


def read(
    shared: Mapping[str, Any], settings: Mapping[str, Any], mask: Mapping[str, Any], where: str
) -> LateInteraction:
    """Reads the settings of a folder.

    Args:
        shared: config_sentence_transformers.json.
        settings: sentence_bert_config.json.
        mask: config.json of its MultiVectorMask; empty where there is none.
        where: the folder, for messages.

    Raises:
        InputError: a setting that is not understood, all in one message.
    """
    found = {**shared, **{k: v for k, v in settings.items() if v is not None}}
    wrong: list[str] = []

    def length(name: str) -> int | None:
        value = found.get(name)
        if value is None or (isinstance(value, int) and value > 2 and value is not True):
            return value
        wrong.append(f"{name}={value!r}, expected an int of at least 3")
        return None

    pylate = any(name in shared for name in _PYLATE)
    expansion = found.get("query_expansion")
    if "query_expansion" not in found and pylate and found.get("do_query_expansion") is not False:
        attend = bool(found.get("attend_to_expansion_tokens"))
        expansion = {"strategy": "fixed", "attend": attend, "length": length("query_length") or 32}
    if expansion is not None and (
        not isinstance(expansion, dict)
        or expansion.get("strategy") not in ("fixed", "min")
        or not isinstance(expansion.get("length"), int)
    ):
        wrong.append(
            f"query_expansion={expansion!r}, expected a strategy 'fixed' or 'min', a length"
        )
        expansion = None
    expansion = expansion or {}
    words = mask.get("skiplist_words", found.get("skiplist_words"))
    if words is None:
        words = list(string.punctuation) if pylate else []
    if mask.get("keep_only_token_ids"):
        wrong.append(f"keep_only_token_ids={mask['keep_only_token_ids']!r}, supported: null")
    kinds = mask.get("skiplist_tasks") or ["document"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    out = LateInteraction(
        query_marker=found.get("query_prefix") or "",
        passage_marker=found.get("document_prefix") or "",
        query_length=length("query_length"),
        passage_length=length("document_length"),
        expand_to=expansion.get("length"),
        expand_fixed=expansion.get("strategy", "fixed") == "fixed",
        expand_attend=bool(expansion.get("attend", False)),
        expansion_token=expansion.get("token"),
        skip_words=tuple(words),
        skip_kinds=tuple("passage" if kind == "document" else kind for kind in kinds),
    )
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}")
    return out

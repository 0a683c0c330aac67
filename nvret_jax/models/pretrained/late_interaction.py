"""How a late-interaction model (ColBERT, PyLate, LateOn-Code) prepares queries and passages.

Each token keeps its vector, and the two kinds differ: a marker token distinguishes queries from
passages, short queries are expanded with mask tokens whose vectors count ("query expansion"), and
some tokens of passages (punctuation) do not count. PyLate writes these settings at the top level of
config_sentence_transformers.json, sentence-transformers from 6.0 in sentence_bert_config.json and
in the config of its MultiVectorMask; both are read.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from nvret_jax.models.pretrained.folder import Fields, shown

SHORTEST = 3  # tokens: two special ones and one of the text


@dataclasses.dataclass(frozen=True)
class LateInteraction:
    """The settings.

    Attributes:
        query_marker, passage_marker: text of a token inserted after the first one; '' for none.
        query_length, passage_length: tokens to which a text is cut; None: the model's max_length.
        expand_to: queries get mask tokens up to this length; None: no expansion.
        expand_fixed: whether longer queries are cut to `expand_to`.
        expand_attend: whether other tokens attend to the mask tokens.
        expansion_token: None: the mask token, or the end token if there is none.
        skip_words: tokens that do not count, by their text.
        skip_kinds: the kinds of text in which they do not count.
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
        """Tokens to which a text of this kind is cut, given the model's limit."""
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
    """Whether a folder's config_sentence_transformers.json describes such a model."""
    scored = str(shared.get("similarity_fn_name") or "").lower() == "maxsim"
    return scored or shared.get("model_type") in ("ColBERT", "MultiVectorEncoder")


def is_pylate(shared: Mapping[str, Any]) -> bool:
    """Whether config_sentence_transformers.json is PyLate's: `read` then gives both lengths."""
    return any(name in shared for name in _PYLATE)


def read(
    shared: Mapping[str, Any], settings: Mapping[str, Any], mask: Mapping[str, Any], where: str
) -> LateInteraction:
    """Reads the settings of a folder.

    Args:
        shared: config_sentence_transformers.json.
        settings: sentence_bert_config.json.
        mask: config.json of its MultiVectorMask; empty if there is none.
        where: the folder, for messages.

    Raises:
        InputError: unsupported settings, all in one message.
    """
    fields = Fields({**shared, **{k: v for k, v in settings.items() if v is not None}})
    limits = {"low": SHORTEST}
    # The defaults of PyLate, or of sentence-transformers for a folder from PyLate.
    pylate = is_pylate(shared)
    query_length = fields.integer("query_length", 32 if pylate else None, **limits)
    passage_length = fields.integer("document_length", 180 if pylate else None, **limits)
    expansion = _expansion(fields, pylate, query_length)
    of_mask = Fields(mask, fields.wrong)
    of_mask.only("keep_only_token_ids", ([],))
    words = of_mask.texts("skiplist_words", fields.texts("skiplist_words", None))
    if words is None:
        words = tuple(string.punctuation) if pylate else ()
    kinds = mask.get("skiplist_tasks") or ["document"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {"document", "query"}:
        fields.wrong.append(f"skiplist_tasks={shown(kinds)}, supported: document, query")
        kinds = []
    out = LateInteraction(
        query_marker=fields.text("query_prefix", ""),
        passage_marker=fields.text("document_prefix", ""),
        query_length=query_length,
        passage_length=passage_length,
        expand_to=expansion.integer("length", None, **limits),
        expand_fixed=expansion.text("strategy", "fixed", choices=("fixed", "min")) == "fixed",
        expand_attend=expansion.flag("attend"),
        expansion_token=expansion.text("token", None),
        skip_words=words,
        skip_kinds=tuple("passage" if kind == "document" else kind for kind in kinds),
    )
    fields.check(where)
    return out


def _expansion(fields: Fields, pylate: bool, query_length: int | None) -> Fields:
    """The settings of query expansion; an empty object if there is none."""
    if "query_expansion" in fields.content or not pylate:
        found = fields.object("query_expansion", {})
        if found and found.get("length") is None:
            fields.wrong.append(f"query_expansion={shown(found)}, expected a length")
        return Fields(found, fields.wrong)
    attend = fields.flag("attend_to_expansion_tokens")
    if not fields.flag("do_query_expansion", True):
        return Fields({}, fields.wrong)
    return Fields({"strategy": "fixed", "attend": attend, "length": query_length}, fields.wrong)

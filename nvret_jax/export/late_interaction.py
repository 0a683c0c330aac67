"""A late-interaction model's settings under PyLate's keys, which sentence-transformers 6 reads too.

Settings without such a key (a query expanded to a length other than its limit, or by a special
token) are written as in sentence-transformers 6, in sentence_bert_config.json.
"""

from __future__ import annotations

from typing import Any

from nvret_jax.errors import InputError


def shared_keys(spec: Any) -> dict[str, Any]:
    """The settings for config_sentence_transformers.json.

    Args:
        spec: an `EncoderSpec` with `late`.

    Raises:
        InputError: a setting that an exported folder cannot express.
    """
    late = spec.late
    if late.skip_words and late.skip_kinds != ("passage",):
        raise InputError(
            f"export: tokens are skipped in {', '.join(late.skip_kinds)}; a folder can express "
            f"that only for passages"
        )
    if not spec.normalize:
        raise InputError(
            "export: normalize=False, but readers of late-interaction models always normalise "
            "token vectors"
        )
    return {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "query_prefix": late.query_marker,
        "document_prefix": late.passage_marker,
        "query_length": late.max_length("query", spec.max_length),
        "document_length": late.max_length("passage", spec.max_length),
        "do_query_expansion": late.expand_to is not None,
        "attend_to_expansion_tokens": late.expand_attend,
        "skiplist_words": list(late.skip_words),
    }


def expansion(spec: Any) -> dict[str, Any]:
    """The settings for sentence_bert_config.json beyond PyLate's keys; usually none."""
    late = spec.late
    if late.expand_to is None:
        return {}
    plain = late.expand_fixed and late.expand_to == late.max_length("query", spec.max_length)
    if plain and late.expansion_token is None:
        return {}
    return {
        "query_expansion": {
            "strategy": "fixed" if late.expand_fixed else "min",
            "length": late.expand_to,
            "attend": late.expand_attend,
            "token": late.expansion_token,
        }
    }

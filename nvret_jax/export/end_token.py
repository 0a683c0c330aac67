"""Writes an end token that the source requires outside tokenizer.json into that file.

Decoders with last-token pooling need one after each text, and require it in files that not all
readers use: `add_eos_token` in tokenizer_config.json (which transformers reads for some tokenizer
classes), `add_eos` in config.json. All readers use tokenizer.json.
"""

from __future__ import annotations

from typing import Any

_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def with_end(tokenizer: dict[str, Any], token: str, identifier: int) -> dict[str, Any]:
    """tokenizer.json that adds `token` after each text."""
    found = tokenizer.get("post_processor")
    steps = [] if found is None else [found]
    if found is not None and found["type"] == "Sequence":
        steps = list(found["processors"])
    at = [i for i, step in enumerate(steps) if step["type"] == "TemplateProcessing"]
    if not at:
        at = [len(steps)]
        steps.append(_TEMPLATE)
    template = steps[at[-1]]
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    special = {"id": token, "ids": [identifier], "tokens": [token]}
    steps[at[-1]] = template | {
        "single": [*template["single"], end],
        "pair": [*template["pair"], end],
        "special_tokens": template["special_tokens"] | {token: special},
    }
    whole = steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}
    return tokenizer | {"post_processor": whole}

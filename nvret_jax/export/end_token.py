"""An end token that the source asked for beside tokenizer.json, written into it.

Decoders whose last token is their vector need one behind each text, and ask for it in places that
not all readers look at: `add_eos_token` in tokenizer_config.json (which transformers heeds for some
tokenizer classes), `add_eos` in config.json. In tokenizer.json everyone finds it.
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
    """tokenizer.json that puts `token` behind each text."""
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

"""The inputs of an artefact as named parts: their hash, and the changes between two sets.

A part is named by the full config key that decides it, and its value is one of

* a value of the config, as it takes effect (a length of 0 becomes the model's own);
* a `Digest` of content that is too long to keep (texts, weights, a file), with the config keys the
  content follows from;
* another artefact, by its fingerprint.

The fingerprint is a hash over the parts, the kind of artefact and the kind's format number. A
record also keeps what is needed to say *why* a fingerprint differs, in terms of config keys: the
parts of all artefacts it was made from, and the config. None of that is hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

# The format of each kind of artefact. It is raised whenever the same inputs give a different
# artefact (after a bug fix in mining or encoding, for example): older artefacts are rebuilt.
FORMATS = {
    "embeddings": 2,
    "candidates": 2,
    "audit": 4,  # 3: equal texts are one; 4: risks beside it
    "negatives": 3,  # 3: equal texts are one
    "checkpoints": 4,  # 4: the start may be the best
    "baseline": 1,
    "overlap": 1,
    "evaluation": 3,  # 3: the scores of each query before training
    "export": 2,
    "report": 2,
}

_SHOWN = 60  # characters of a value in a reason
_REASONS = 6  # changes listed individually


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Digest:
    """Content by its hash, or a value that follows from several keys.

    Attributes:
        hash: of the content; or the value.
        what: its name in words, such as 'the texts of the passages'.
        keys: of the config on which the content depends; named if one of them changed.
    """

    hash: Any
    what: str
    keys: tuple[str, ...] = ()


class Made(Protocol):
    """An artefact, as a part of another."""

    name: str
    fingerprint: str

    def described(self) -> dict[str, Any]: ...


Parts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class About:
    """What a reason needs in addition to parts; never hashed.

    Attributes:
        names: of parts, if their config key differs ('mining.percent' of a set is
            'sets.NAME.percent').
        values: of the whole config, by key, for parts that count only sometimes.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def hashed(parts: Parts) -> dict[str, Any]:
    """The hashed content of the parts."""

    def of(value: Any) -> Any:
        if isinstance(value, Digest):
            return value.hash
        return value.fingerprint if hasattr(value, "fingerprint") else value

    return {key: of(value) for key, value in parts.items()}


def recorded(parts: Parts) -> dict[str, Any]:
    """The parts in the form for a record."""

    def of(value: Any) -> Any:
        if isinstance(value, Digest):
            return {"hash": value.hash, "what": value.what, "keys": list(value.keys)}
        if hasattr(value, "fingerprint"):
            return {"artifact": value.name, "fingerprint": value.fingerprint}
        return value

    return json.loads(json.dumps({key: of(value) for key, value in parts.items()}))


def differing(old: Parts, new: Parts) -> set[str]:
    """The keys of two sets of recorded parts that differ."""
    return {key for key in {*old, *new} if not _same(old.get(key), new.get(key))}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why two descriptions have different fingerprints, in one line.

    Args:
        old, new: the results of `Artifact.described`, with `inputs`: {fingerprint: description}.
    """
    # What several inputs have in common, such as the data, is one change.
    of: dict[str, set[str]] = {}
    for at, text in _changes(old, new, old["inputs"], new["inputs"], ""):
        of.setdefault(text, set()).add(at)
    found = [
        f"{at}: {text}" if len(ats) == 1 and (at := min(ats)) else text for text, ats in of.items()
    ]
    # The text of a card or report follows from other values; it is a reason only if no other
    # changed.
    own = [text for text in found if text not in _SAID] or found
    shown, more = own[:_REASONS], len(own) - _REASONS
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


SAID = "what it says about the run"
_SAID = (f"{SAID} changed",)


def _changes(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_inputs: Mapping[str, Any],
    new_inputs: Mapping[str, Any],
    at: str,
) -> Iterator[tuple[str, str]]:
    """(of which input, what changed) of each change."""
    if old.get("format") != new["format"]:
        yield at, f"made by {_version(old.get('format'), new['format'])}"
        return
    before, after = old["parts"], new["parts"]
    follow: list[str] = []  # values that are as before, and only another's change makes them matter
    for key in sorted(set(before) | set(after)):
        a, b = before.get(key), after.get(key)
        if _same(a, b) and (key in before) == (key in after):
            continue
        if _is(a, "artifact") and _is(b, "artifact"):
            one, other = old_inputs.get(a["fingerprint"]), new_inputs.get(b["fingerprint"])
            inner = _label(b["artifact"])
            if one is None or other is None:
                yield "", f"{inner} changed"
            else:
                yield from _changes(one, other, old_inputs, new_inputs, inner)
        elif _is(a, "artifact") or _is(b, "artifact"):
            there = a if _is(a, "artifact") else b
            fate = "is no longer used" if b is None else "is new"
            yield at, f"{_label(there['artifact'])} {fate}"
        elif _is(a, "hash") or _is(b, "hash"):
            yield from ((at, text) for text in _of_digest(a, b, old, new))
        else:
            a = _value(before, key, old)
            b = _value(after, key, new)
            if a != b:
                yield at, f"{_name(key, old, new)} {shown_change(a, b)}"
            else:
                how = "no longer" if key in before else "now"
                follow.append(f"{_name(key, old, new)} is {how} used")
    yield from ((at, text) for text in follow)


def _of_digest(a: Any, b: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    there = b if _is(b, "hash") else a
    found = False
    keys = [*(a["keys"] if _is(a, "hash") else ()), *(b["keys"] if _is(b, "hash") else ())]
    for key in dict.fromkeys(keys):
        one, other = old["config"].get(key), new["config"].get(key)
        if one != other:
            found = True
            yield f"{_name(key, old, new)} {shown_change(one, other)}"
    if found:
        return
    if a is None or b is None:
        yield f"{'now' if a is None else 'no longer'} depends on {there['what']}"
    else:
        yield f"{there['what']} changed"


def shown_change(old: Any, new: Any) -> str:
    """'old → new', both shortened around the difference."""
    if isinstance(old, list) and isinstance(new, list) and len(str(old)) + len(str(new)) > _SHOWN:
        gone = [value for value in old if value not in new]
        come = [value for value in new if value not in old]
        if gone or come:
            return f"{_some(gone, old)} → {_some(come, new)}"
    if isinstance(old, str) and isinstance(new, str) and len(old) + len(new) > _SHOWN:
        first = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), None)
        first = min(len(old), len(new)) if first is None else first
        return f"{_around(old, first)} → {_around(new, first)}"
    return f"{_shown(old)} → {_shown(new)}"


def _some(part: Sequence[Any], whole: Sequence[Any]) -> str:
    inner = ", ".join(_shown(value) for value in part)
    dots = "…" if len(part) < len(whole) else ""
    return f"[{inner}{', ' if inner and dots else ''}{dots}]"


def _around(text: str, at: int) -> str:
    begin, end = max(0, at - 15), at + 25
    return f"'{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}'"


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _value(parts: Mapping[str, Any], key: str, of: Mapping[str, Any]) -> Any:
    return parts[key] if key in parts else of["config"].get(key)


def _name(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return new["names"].get(key) or old["names"].get(key) or key


def _is(value: Any, what: str) -> bool:
    return isinstance(value, dict) and what in value


def _same(a: Any, b: Any) -> bool:
    def content(value: Any) -> Any:
        found = [value[what] for what in ("fingerprint", "hash") if _is(value, what)]
        return found[0] if found else value

    return content(a) == content(b)


def _label(name: str) -> str:
    """'negatives' for negatives/train.parquet, 'sets/x/negatives' for a set's."""
    folders = name.split("/")
    deep = 2 if folders[0] in ("sets", "rounds") else 0
    return "/".join(folders[: deep + 1]).removesuffix(".json")


def _version(old: Any, new: Any) -> str:
    older = not isinstance(old, int) or old < new
    return f"{'an older' if older else 'another'} version of nvret_jax"

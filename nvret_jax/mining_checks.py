"""The checks of a config's blocks about mining: `mining`, `teachers`, `rescorer`, `audit`."""

from __future__ import annotations

from ml_collections import ConfigDict

from nvret_jax.choices import (
    ANCHORS,
    COMPAT,
    DTYPES,
    ENSEMBLES,
    OWN_TEXT,
    RANKS,
    RULES,
    SAMPLINGS,
    SHORT,
    VERDICT_MODES,
)


def check_mining(config: ConfigDict, need, one_of) -> None:
    """Tells `need` and `one_of`, which collect mistakes, what must hold."""
    mining = config.mining
    rules = mining.rule.split("+")
    need(
        set(rules) <= set(RULES) and len(set(rules)) == len(rules),
        "mining.rule",
        f"choose one of {', '.join(RULES)}, or several different ones joined by '+'",
    )
    for key, known in (
        ("anchor", ANCHORS),
        ("ranks", RANKS),
        ("compat", COMPAT),
        ("sampling", SAMPLINGS),
        ("ensemble", ENSEMBLES),
        ("short", SHORT),
        ("verdict_mode", VERDICT_MODES),
    ):
        one_of(f"mining.{key}", mining[key], known)
    for key, low, high, what in (
        ("percent", 0, 2, "a share of the anchor, such as 0.95, or 'auto'"),
        ("margin", -1e-9, 2, "a distance between cosines, such as 0.05, or 'auto'"),
    ):
        value = mining[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        need(value == "auto" or (is_number and low < value <= high), f"mining.{key}", what)
    need(-1 <= mining.threshold <= 1, "mining.threshold", "a cosine, such as 0.70")
    need(mining.shift >= 0, "mining.shift", "must be 0 or more ranks")
    need(mining.max_rank >= 0, "mining.max_rank", "must be 0 (no bound) or more ranks")
    need(mining.num_negatives >= 1, "mining.num_negatives", "must be positive")
    skipped = mining.shift if "shifted" in rules else 0
    if mining.max_rank > 0:
        room = mining.max_rank - skipped
        what = f"leaves {room} ranks after shift={skipped}, and num_negatives are asked for"
        need(room >= mining.num_negatives, "mining.max_rank", what)
    need(mining.sample_from >= 1, "mining.sample_from", "must be positive")
    need(mining.sample_temperature > 0, "mining.sample_temperature", "must be positive")
    need(mining.max_promoted >= 0, "mining.max_promoted", "must be 0 (never) or more")
    calibration = mining.calibration
    need(0 < calibration.target < 1, "mining.calibration.target", "a share, such as 0.05")
    need(calibration.queries >= 0, "mining.calibration.queries", "must be 0 (all) or more")
    exclude = mining.exclude
    one_of("mining.exclude.own_text", exclude.own_text, OWN_TEXT)
    for key in ("near_copy", "minhash"):
        need(0 <= exclude[key] <= 1, f"mining.exclude.{key}", "0 (off), or up to 1")

    if exclude.document_separator and exclude.document_map:
        need(False, "mining.exclude.document_map", "a passage has one document: leave one empty")

    known = ("teacher", *config.teachers)
    for name in config.teachers:
        plain = name.replace("-", "").replace("_", "").isalnum()
        free = name not in ("teacher", "student", "student-start", "random fill")
        if not (plain and free):
            need(False, "teachers", f"{name!r} is no name for a teacher: letters, digits, '-', '_'")
    names = tuple(mining.teachers)
    need(bool(names), "mining.teachers", f"name at least one of {', '.join(known)}")
    unknown = [name for name in names if name not in known]
    need(not unknown, "mining.teachers", f"unknown {unknown}; known are {', '.join(known)}")
    need(len(set(names)) == len(names), "mining.teachers", "name each teacher once")

    rescorer = config.rescorer
    one_of("rescorer.order", rescorer.order, ("teacher", "rescored"))
    one_of("rescorer.dtype", rescorer.dtype, DTYPES)
    need(rescorer.depth >= 1, "rescorer.depth", "must be positive")
    if rescorer.model and rescorer.order == "teacher" and "auto" in (mining.percent, mining.margin):
        what = "a value that is 'auto' is chosen from all scores: use 'rescored'"
        need(False, "rescorer.order", what)
    need(rescorer.length == 0 or rescorer.length >= 5, "rescorer.length", "0 (the model's) or >= 5")

    audit = config.audit
    for key, low, high in (("percents", 0, 2), ("margins", 0, 2), ("thresholds", -1, 1)):
        good = all(isinstance(v, int | float) and low <= v <= high for v in audit[key])
        need(good, f"audit.{key}", f"numbers in {low}..{high}")
    good = all(isinstance(v, int) and v >= 0 for v in audit.shifts)
    need(good, "audit.shifts", "whole numbers of ranks, 0 or more")
    need(audit.queries >= 0, "audit.queries", "must be 0 (all) or more")
    need(audit.resamples >= 1, "audit.resamples", "must be positive")

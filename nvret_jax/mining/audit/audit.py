"""How many mined negatives are hidden positives, by rule, value and teacher.

For a query with several positives, one stays visible and the others are hidden (holdout.py). Mining
then knows only the visible one: it is the anchor, and only its copies are excluded. Every rule and
value is tried on the same queries, and compared with naive mining.

Judged positives are a lower bound of the relevant passages: an unjudged passage counts as a true
negative here. Shares compare rules and teachers on one data set, not data sets with each other.
docs/audit.md says how to read each column.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.audit.holdout import (
    hide,
    interval,
    queries_to_audit,
    ratio,
    resampled_shares,
    try_rule,
    visible_positives,
    visible_rows,
)
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import KINDS, NAIVE, VALUES, Rule
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker

__all__ = [
    "COLUMNS",
    "Row",
    "audit",
    "audit_table",
    "csv_text",
    "read_csv",
    "rules_to_try",
    "value_text",
    "visible_positives",
    "visible_rows",
]


@dataclasses.dataclass(frozen=True)
class Row:
    """One rule with its value, tried with one teacher; the fields are the columns of the CSV.

    Attributes:
        dataset, teacher: names.
        rule, value: value is '' for naive; both are joined by '+' for combined rules.
        false_negative_share: hidden positives / mined negatives, over all queries.
        low, high: its 95 % bootstrap interval over queries.
        hardness: mean over mined negatives of 1 - (anchor - score) / |anchor|, which is
            score / anchor for a positive anchor: the `percent` whose ceiling equals its score.
        fill: mined negatives / wanted ones.
        cost: true negatives rejected for each hidden positive rejected, both among the stored
            candidates that rank ahead of a query's last negative: the cost of avoiding a false
            negative in good, hard negatives. nan where no hidden positive was rejected.
        gap: mean over mined negatives of anchor - score, in the teacher's unit.
        cut, cut_low, cut_high: the naive share minus this one, with its paired interval.
        relative_cut, relative_low, relative_high: the same divided by the naive share.
        queries: queries used, all with at least two positives.
        slots: mined negatives.
        false_negatives: hidden positives among them.
    """

    dataset: str
    teacher: str
    rule: str
    value: str
    false_negative_share: float
    low: float
    high: float
    hardness: float
    fill: float
    cost: float
    gap: float
    cut: float
    cut_low: float
    cut_high: float
    relative_cut: float
    relative_low: float
    relative_high: float
    queries: int
    slots: int
    false_negatives: int


def check_any(audited: int, queries: int, dataset: str) -> None:
    """Raises InputError if no query has two positives."""
    if not audited:
        raise InputError(
            f"audit: none of the {queries} queries of {dataset!r} has two positives, and one must "
            f"stay visible; audit a data set with several positives per query"
        )


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def audit(
    candidates: Candidates,
    ranker: Ranker | None,
    options: Options,
    rules: Sequence[Rule],
    *,
    visible: np.ndarray,
    excluded: Ragged,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    dataset: str,
    teacher: str,
    max_queries: int = 0,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    texts: SameText | None = None,
) -> list[Row]:
    """Tries rules on one teacher's candidates.

    Args:
        candidates: of Q queries, with all positives known.
        ranker: of the same queries, for the second search; None: only the stored candidates are
            used.
        options: how to mine; its rule is replaced by each of `rules`.
        rules: the rules to try; naive is always tried, and comes first.
        visible: int64 [Q], from `visible_positives`.
        excluded: int32, the exclusions of each of the Q queries when only its visible positive is
            known.
        query_ids: of the Q queries.
        passage_ids: of all N passages.
        dataset, teacher: names for the rows.
        max_queries: queries used; 0: all with at least two positives.
        resamples: per interval.
        seed: of the bootstrap and of the choice of queries.
        progress: called with the description of each rule before it is tried.
        texts: of the corpus, with candidates and ranker over its distinct texts; see
            `search.rankers.distinct`.

    Returns:
        A row for each rule, in the order of `rules`, naive first.

    Raises:
        InputError: no query has two positives.
    """
    numbers = queries_to_audit(candidates.positive_rows, query_ids, max_queries, seed)
    check_any(len(numbers), len(candidates), dataset)
    hidden = hide(
        candidates,
        ranker,
        numbers,
        visible,
        excluded=excluded.take(numbers),
        query_ids=query_ids,
        texts=texts,
    )
    naive = dataclasses.replace(options.rule, name=NAIVE)
    rules = [naive, *(rule for rule in rules if rule.name != NAIVE)]
    trials = []
    for rule in rules:
        if progress is not None:
            progress(rule.describe())
        trials.append(try_rule(hidden, options, rule, passage_ids))
    shares = resampled_shares(trials, hidden.query_ids, resamples=resamples, seed=seed)
    wanted = options.num_negatives * len(numbers)
    return [
        _row(dataset, teacher, rule, trial, trials[0], shares[i], shares[0], wanted)
        for i, (rule, trial) in enumerate(zip(rules, trials, strict=True))
    ]


def _row(dataset, teacher, rule, trial, naive, shares_b, naive_b, wanted) -> Row:
    low, high = interval(shares_b)
    cut_low, cut_high = interval(naive_b - shares_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_low, relative_high = interval(1.0 - shares_b / naive_b)
    return Row(
        dataset=dataset,
        teacher=teacher,
        rule=rule.name,
        value=value_text(rule),
        false_negative_share=trial.share,
        low=low,
        high=high,
        hardness=trial.hardness,
        fill=int(trial.slots_q.sum()) / wanted,
        cost=ratio(trial.rejected_true, trial.rejected_hidden),
        gap=trial.gap,
        cut=naive.share - trial.share,
        cut_low=cut_low,
        cut_high=cut_high,
        relative_cut=1.0 - ratio(trial.share, naive.share),
        relative_low=relative_low,
        relative_high=relative_high,
        queries=len(trial.slots_q),
        slots=int(trial.slots_q.sum()),
        false_negatives=int(trial.hits_q.sum()),
    )


def rules_to_try(options: Options, values: Mapping[str, Sequence[float]]) -> list[Rule]:
    """Naive, each rule with each of its values, and finally the options' rule if it is not among
    them.

    Args:
        options: its rule gives ranks, bounds and the like to all; shifts for which its `max_rank`
            leaves no ranks are left out.
        values: to try, by rule; see `mining.options.Audit`.
    """
    base = options.rule
    room = base.max_rank - options.num_negatives
    tried = [dataclasses.replace(base, name=NAIVE)]
    for name, list_of_values in values.items():
        for value in list_of_values:
            if base.max_rank and KINDS[name].skips_ranks and value > room:
                continue
            tried.append(dataclasses.replace(base, name=name, **{VALUES[name]: value}))
    if (base.name, value_text(base)) not in {(rule.name, value_text(rule)) for rule in tried}:
        tried.append(base)
    return tried


def value_text(rule: Rule) -> str:
    """The value or values of a rule, as in the CSV."""
    names = [VALUES[name] for name in rule.names if VALUES[name]]
    return "+".join(f"{getattr(rule, name):g}" for name in names)


def csv_text(rows: Sequence[Any], kind: type = Row) -> str:
    """Rows of a dataclass as CSV; numbers with six digits, empty for nan."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(kind)])
    for row in rows:
        cells = dataclasses.astuple(row)
        writer.writerow([_cell(value) if isinstance(value, float) else value for value in cells])
    return out.getvalue()


def read_csv(path: epath.PathLike, kind: type = Row) -> list[Any]:
    """The rows of a dataclass that `csv_text` wrote.

    Raises:
        InputError: another file.
    """
    import csv

    path = epath.Path(path)
    fields = dataclasses.fields(kind)
    convert = {"str": str, "int": int, "float": lambda cell: float(cell) if cell else math.nan}
    try:
        header, *lines = csv.reader(path.read_text().splitlines())
        if header != [field.name for field in fields]:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [
            kind(*(convert[f.type](cell) for f, cell in zip(fields, line, strict=True)))
            for line in lines
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the table of an audit ({error})") from None


def audit_table(rows: Sequence[Row]):
    """Something for `rich` to print: a table for each data set and teacher, 80 columns wide."""
    from rich.console import Group

    blocks = dict.fromkeys((row.dataset, row.teacher) for row in rows)
    return Group(
        *(
            _table(block, [row for row in rows if (row.dataset, row.teacher) == block])
            for block in blocks
        )
    )


def _table(block: tuple[str, str], rows: Sequence[Row]):
    from rich import box
    from rich.table import Table

    title = f"False negatives by rule: {', '.join(block)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    for name in ("value", "false neg.", "95 % interval", "hardness", "fill", "cost", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.rule,
            row.value,
            _shown(row.false_negative_share, ".1%"),
            f"{row.low:.1%} … {row.high:.1%}" if row.slots else "",
            _shown(row.hardness, ".3f"),
            f"{row.fill:.1%}",
            _shown(row.cost, ".2f"),
            "" if row.rule == NAIVE else _shown(row.relative_cut, ".0%"),
        )
    return table


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"

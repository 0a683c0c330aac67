"""Before and after: the difference of two evaluations, its interval, and the table to print.

The interval is a paired bootstrap over queries (Sakai, SIGIR 2006, section 2): draw as many
queries as there are, with replacement, take the mean difference, repeat, and report the 2.5th and
97.5th percentile of the means. It shows how far the difference would move with other queries of the
same kind; it does not cover the variation between training seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import MEASURE_NAMES, MEASURES, Evaluation

TEACHER_PASSAGES = "teacher's passages"  # the column of asymmetric scores
# At most this many drawn query numbers are in memory at a time (32 MB of int64).
_DRAWS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same queries.

    Attributes:
        dataset, split: what both were evaluated on.
        queries: how many queries were scored.
        before, after: means by trec name.
        measure: the measure the interval belongs to.
        interval: (low, high), 95 % bootstrap interval of the mean difference after - before.
    """

    dataset: str
    split: str
    queries: int
    before: dict[str, float]
    after: dict[str, float]
    measure: str
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Scores:
    """One row group of the card's table: a dataset's means before and after.

    Attributes:
        dataset: name and split for display.
        queries: how many were scored.
        before: {trec name: mean}, or None when the untrained model was not evaluated.
        after: {trec name: mean}.
        interval: 95 % interval of the nDCG@10 difference, or None.
        measured: a sentence about before and after; '' if nothing was trained.
        bm25: {trec name: mean} of BM25 on the same queries, or None.
        asymmetric: {trec name: mean} of the same queries with a teacher's passages, or None.
        overlaps: what it has in common with each training set, a sentence each.
    """

    dataset: str
    queries: int
    before: Mapping[str, float] | None
    after: Mapping[str, float]
    interval: tuple[float, float] | None = None
    measured: str = ""
    bm25: Mapping[str, float] | None = None
    asymmetric: Mapping[str, float] | None = None
    overlaps: Sequence[str] = ()


def compare(
    before: Evaluation,
    after: Evaluation,
    *,
    measure: str = "ndcg_cut_10",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two evaluations of the same queries of the same dataset.

    Raises:
        InputError: another dataset or split, or other queries.
    """
    where = f"{before.dataset} {before.split}"
    if (after.dataset, after.split) != (before.dataset, before.split):
        raise InputError(f"cannot compare {where} with {after.dataset} {after.split}")
    if before.per_query.keys() != after.per_query.keys():
        odd = min(before.per_query.keys() ^ after.per_query.keys())
        raise InputError(f"cannot compare on {where}: query {odd!r} was scored only once")
    return Comparison(
        dataset=before.dataset,
        split=before.split,
        queries=len(before.per_query),
        before=dict(before.metrics),
        after=dict(after.metrics),
        measure=measure,
        interval=bootstrap_interval(
            before.per_query, after.per_query, measure, resamples=resamples, seed=seed
        ),
    )


def bootstrap_interval(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    measure: str = "ndcg_cut_10",
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Paired bootstrap interval of mean(after) - mean(before); see the top of this file.

    Args:
        before, after: {query id: {measure: value}} with the same queries.
        resamples: how many means are drawn.
        seed: of numpy's default generator; the same inputs and seed give the same interval, in any
            order of the queries.
    """
    delta_q = np.array([after[q][measure] - before[q][measure] for q in sorted(before)])
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // len(delta_q))
    means = [
        delta_q[rng.integers(len(delta_q), size=(min(step, resamples - at), len(delta_q)))].mean(1)
        for at in range(0, resamples, step)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def comparison_table(
    comparisons: Sequence[Comparison],
    measures: Sequence[str] = MEASURES,
    *,
    bm25: Sequence[Mapping[str, float] | None] = (),
    asymmetric: Sequence[Mapping[str, float] | None] = (),
):
    """A `rich.table.Table`, one block per dataset: before, after and difference of each measure.

    Print it with `rich.print`; `table_text` gives it as plain text, 80 columns wide.

    Args:
        comparisons: one for each block.
        measures: rows of a block.
        bm25: for each block the means of BM25, or None; empty: no column for it.
        asymmetric: for each block the means of the queries after training with a teacher's
            passages, likewise.
    """
    table = _table("Retrieval before and after training")
    beside = _beside(table, "BM25", bm25)
    for name in ("before", "after", "difference", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    other = _beside(table, TEACHER_PASSAGES, asymmetric)
    for number, entry in enumerate(comparisons):
        table.add_row(f"{entry.dataset} {entry.split}, {entry.queries:,} queries")
        for i, name in enumerate(measures):
            interval = ""
            if name == entry.measure:
                interval = f"{entry.interval[0]:+.4f} … {entry.interval[1]:+.4f}"
            table.add_row(
                MEASURE_NAMES.get(name, name),
                *beside(number, name),
                f"{entry.before[name]:.4f}",
                f"{entry.after[name]:.4f}",
                f"{entry.after[name] - entry.before[name]:+.4f}",
                interval,
                *other(number, name),
                end_section=i == len(measures) - 1,
            )
    return table


def evaluation_table(
    evaluations: Sequence[Evaluation],
    measures: Sequence[str] = MEASURES,
    *,
    bm25: Sequence[Mapping[str, float] | None] = (),
    asymmetric: Sequence[Mapping[str, float] | None] = (),
):
    """A `rich.table.Table` of single evaluations, one block per dataset, without training.

    Args:
        evaluations: one for each block.
        measures, bm25, asymmetric: see `comparison_table`.
    """
    table = _table("Retrieval")
    beside = _beside(table, "BM25", bm25)
    table.add_column("score", justify="right", no_wrap=True)
    other = _beside(table, TEACHER_PASSAGES, asymmetric)
    for number, entry in enumerate(evaluations):
        table.add_row(f"{entry.dataset} {entry.split}, {len(entry.query_ids):,} queries")
        for i, name in enumerate(measures):
            table.add_row(
                MEASURE_NAMES.get(name, name),
                *beside(number, name),
                f"{entry.metrics[name]:.4f}",
                *other(number, name),
                end_section=i == len(measures) - 1,
            )
    return table


def _beside(
    table, title: str, of_blocks: Sequence[Mapping[str, float] | None]
) -> Callable[[int, str], tuple[str, ...]]:
    """Adds a column if any block has means for it; (block, measure) -> its cells."""
    if not any(of_blocks):
        return lambda number, name: ()
    table.add_column(title, justify="right", min_width=max(map(len, title.split())))

    def cells(number: int, name: str) -> tuple[str, ...]:
        means = of_blocks[number]
        return (f"{means[name]:.4f}" if means else "",)

    return cells


def _table(title: str):
    """An empty table whose first column names data sets and measures, and wraps."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("measure", overflow="fold")
    return table


def table_text(table, width: int = 80) -> str:
    """A rich table as plain text without colour codes, for logs and files."""
    import io

    from rich.console import Console

    out = io.StringIO()
    # In a notebook rich would display the table and write nothing.
    console = Console(
        file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

"""The share of texts that an encoder cuts, by data set and table.

A text with more tokens than its encoder keeps silently loses its end. So a run prints the share
before it embeds or trains, and records it with its scores and in its report. The count needs only
the tokenizer. For a large table it uses an evenly distributed sample of rows, which is accurate to
about a percent.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nvret_jax.data.dataset import Dataset
from nvret_jax.pipeline.encoders import ConfiguredEncoder
from nvret_jax.pipeline.state import Run

SAMPLE = 10_000  # rows counted of a larger table
# The names of roles other than teachers in messages.
TITLES = {"student-start": "student before training", "student": "student"}


@dataclasses.dataclass(frozen=True)
class Truncation:
    """How many texts of a table an encoder cuts.

    Attributes:
        encoder: a teacher's name, or one of `TITLES`.
        dataset, table: of the texts: 'passages' or 'queries-<split>' of a data set.
        length: tokens kept of a text, special tokens included.
        texts: rows of the table.
        counted, cut: rows checked, and how many of these are longer than `length`.
    """

    encoder: str
    dataset: str
    table: str
    length: int
    texts: int
    counted: int
    cut: int

    @property
    def share(self) -> float:
        return self.cut / self.counted if self.counted else 0.0

    @property
    def counts(self) -> str:
        """In words: '587 of 1,398'."""
        sample = f" sampled from {self.texts:,}" if self.counted < self.texts else ""
        return f"{self.cut:,} of {self.counted:,}{sample}"

    def line(self) -> str:
        """For the terminal."""
        return (
            f"texts     {self.encoder}: {self.dataset} {self.table}, "
            f"{percent(self.share)} longer than {self.length} tokens and cut ({self.counts})"
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "share": self.share}


def percent(share: float) -> str:
    """'42 %'; one decimal if a whole number would be misleading."""
    value = 100 * share
    return f"{value:.0f} %" if value == round(value) or 10 <= value <= 90 else f"{value:.1f} %"


def of_encoder(
    run: Run, configured: ConfiguredEncoder, encoder: str, data: Dataset, table: str
) -> Truncation:
    """The count for one table.

    Args:
        run: has the tables, and caches counts for encoders with the same cuts.
        configured: the encoder, by its tokenizer, prompt and length.
        encoder: its name in messages.
    """
    kind, rows = run.table(data, table)
    length = configured.length(kind)
    texts = rows.texts
    if len(texts) > SAMPLE:
        texts = [texts[i] for i in np.linspace(0, len(texts) - 1, SAMPLE).astype(int)]
    key = (*configured.tokens_of(kind), length, run.text_digest(data, table))
    if key not in run.cut_counts:
        run.cut_counts[key] = configured.count_cut(texts, kind)
    cut = run.cut_counts[key]
    return Truncation(encoder, data.name, table, length, len(rows), len(texts), cut)


def of_role(run: Run, role: str, data: Dataset, table: str) -> Truncation:
    """The count for the encoder of a role, as `Run.encoder` knows it."""
    title = TITLES.get(role, role) if run.trains else role.removesuffix("-start")
    return of_encoder(run, run.encoder(role), title, data, table)


def of_test(run: Run) -> dict[str, list[Truncation]]:
    """The counts behind the scores: 'before' and 'after', or only 'after' without training."""
    data, tables = run.test_data, ("passages", f"queries-{run.config.data.test_split}")
    roles = {"before": "student-start", "after": "student"} if run.trains else {}
    roles = roles or {"after": "student-start"}
    return {
        when: [of_role(run, role, data, table) for table in tables] for when, role in roles.items()
    }


def of_run(run: Run) -> list[Truncation]:
    """All counts of a run: teachers and student on the training sets, the student on dev and test.

    Args:
        run: a whole run, not that of one of its sets.
    """
    found: list[Truncation] = []
    mines = {"embed", "search", "mine", "audit"} & set(run.config.stages)
    for set_run in run.sets.values() if mines or run.trains else ():
        data = set_run.train_data
        for table in ("passages", f"queries-{set_run.config.data.train_split}"):
            found += [of_role(set_run, name, data, table) for name in set_run.encoders]
            if run.trains:
                found.append(of_encoder(set_run, set_run.student, "student", data, table))
    if run.dev_split:
        queries = f"queries-{run.dev_split}"
        found.append(of_encoder(run, run.student, "student", run.train_data, queries))
    if run.evaluates:
        found += [one for counts in of_test(run).values() for one in counts]
    return list(dict.fromkeys(found))

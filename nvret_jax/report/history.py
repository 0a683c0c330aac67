"""What was measured while a model was trained, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Metrics of a step that are drawn, by their name in the file, where they are there.
_CURVES = (("loss", "loss"), ("dev_ndcg_cut_10", "dev nDCG@10"), ("learning_rate", "learning rate"))


class History(list):
    """Metrics by step: dicts as metrics.jsonl has them, oldest first.

    `pandas.DataFrame(history)` makes a table of it.
    """

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, such as 'loss' or 'dev_ndcg_cut_10'."""
        found = [(line["step"], line[name]) for line in self if name in line]
        return [step for step, _ in found], [value for _, value in found]

    def names(self) -> list[str]:
        """The metrics there are."""
        names = dict.fromkeys(name for line in self for name in line)
        return [name for name in names if name not in ("step", "stage")]

    def plot(self, names: Iterable[str] | None = None) -> Any:
        """A figure of curves over steps, one below the other.

        Args:
            names: of metrics; None: loss, dev nDCG@10 and learning rate, where they are there.

        Returns:
            A matplotlib figure, which a notebook shows where it is the last line of a cell.
        """
        from matplotlib import pyplot

        there = self.names()
        known = dict(_CURVES)
        names = [name for name in known if name in there] if names is None else list(names)
        figure, axes = pyplot.subplots(
            max(1, len(names)), 1, sharex=True, squeeze=False, figsize=(7, 1 + 1.8 * len(names))
        )
        for place, name in zip(axes[:, 0], names, strict=False):
            steps, values = self.series(name)
            place.plot(steps, values, marker="o" if len(steps) < 12 else None, lw=1.4)
            place.set_ylabel(known.get(name, name))
        axes[-1, 0].set_xlabel("step")
        figure.tight_layout()
        pyplot.close(figure)  # or a notebook would show it twice
        return figure

    def __repr__(self) -> str:
        steps = self[-1]["step"] if self else 0
        return f"History({steps:,} steps: {', '.join(self.names()) or 'nothing'})"

"""The results of a run for Python callers, read from the workdir on demand."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from etils import epath

from nvret_jax.api.encoder import Encoder
from nvret_jax.errors import InputError
from nvret_jax.evaluation import output
from nvret_jax.evaluation.retrieval import MEASURE_NAMES
from nvret_jax.report.history import History
from nvret_jax.training.metric_writer import read_metrics

# Name -> path below the workdir.
_PATHS = {
    "export": "export",
    "report": "report.html",
    "metrics": "metrics.jsonl",
    "checkpoints": "checkpoints",
    "negatives": "negatives",
    "candidates": "candidates",
    "evaluation": "evaluation",
    "audit": "audit.csv",
    "config": "config.json",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The results in the workdir of a run.

    Attributes:
        workdir: the folder.
    """

    workdir: epath.Path

    @property
    def paths(self) -> dict[str, epath.Path]:
        """Paths of the results: 'export', 'report', 'metrics', 'negatives', …"""
        found = {name: self.workdir / place for name, place in _PATHS.items()}
        return {name: path for name, path in found.items() if path.exists()}

    @functools.cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The content of each evaluation file: dataset, split, measures, counts, per_query, …"""
        files = output.evaluation_files(self.workdir / "evaluation")
        return [json.loads(path.read_text()) for path in files]

    @property
    def scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """'dataset split' -> 'before', 'after', 'asymmetric' and 'BM25' -> measure -> mean.

        Measures have their trec names. A run that trains nothing has the scores of its model under
        'before'; 'asymmetric' (with a teacher's passages) and 'BM25' are there where they were
        scored.
        """
        out = {}
        for found in self.evaluations:
            means = {name: found[name] for name in MEASURE_NAMES if name in found}
            made = {"before": means}
            if found.get("trained"):
                made = {"before": found["before"], "after": means}
            if "asymmetric" in found:
                made["asymmetric"] = found["asymmetric"]
            bm25 = self.workdir / "evaluation" / f"{found['dataset']}{output.BM25}"
            baseline = json.loads(bm25.read_text()) if bm25.exists() else None
            if baseline is not None:
                made["BM25"] = {name: baseline[name] for name in means}
            out[f"{found['dataset']} {found['split']}"] = made
        return out

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The exported model: the trained one, or the student where nothing was trained.

        Raises:
            InputError: the run has exported none.
        """
        if "export" not in self.paths:
            raise InputError(f"{self.workdir / 'export'}: no such folder; run the stage export")
        return Encoder.from_pretrained(self.paths["export"])

    @property
    def history(self) -> History:
        """Metrics by step; `history.plot()` draws them."""
        return History(read_metrics(self.workdir / "metrics.jsonl"))

    def __repr__(self) -> str:
        told = []
        for name, scores in self.scores.items():
            values = [scores[when]["ndcg_cut_10"] for when in ("before", "after") if when in scores]
            told.append(f"{name} nDCG@10 {' → '.join(f'{value:.4f}' for value in values)}")
        made = ", ".join(self.paths) or "nothing yet"
        return f"Result({'; '.join([*told, made])}; in {self.workdir})"

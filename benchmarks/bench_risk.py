"""A risk budget per query against one percent for all: harder negatives at an equal counted share?

    python benchmarks/bench_risk.py --data=beir:DIR/banking77 --model=DIR --max_length=32

Of the queries with several positives one positive stays visible and the others are hidden. Risks
are fitted to one half of the queries, by labels and by ranks (`mining.audit.risk_fit`); everything
is counted on the other half: how true the risks are, and what budgets and percents mine. For each
budget `percent_hardness` is the hardness that percents reach at the same share of false negatives,
between their values by lines; `harder` is the difference, with a 95 % bootstrap interval over
queries.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import nvret_jax.api as nv
from benchmarks.lab import sets
from benchmarks.lab.linear import vectors
from nvret_jax import mesh as mesh_lib
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText
from nvret_jax.mining.audit import risk_fit
from nvret_jax.mining.audit.holdout import (
    Hidden,
    hide,
    queries_to_audit,
    sample,
    visible_positives,
    visible_rows,
    weights,
)
from nvret_jax.mining.audit.rank_estimate import rank_law
from nvret_jax.mining.exclude import exclusion
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.options import Exclude, Options
from nvret_jax.mining.risk import RiskModel, relative
from nvret_jax.mining.rules import Rule
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker

BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.3)
PERCENTS = tuple(round(0.4 + 0.02 * i, 2) for i in range(36))


def halves(args: argparse.Namespace) -> tuple[Hidden, Hidden]:
    """Two halves of the queries, each with one visible positive, by the teacher's candidates."""
    data = nv.load_dataset(args.data)
    positives = data.positives(args.split, args.min_relevance)
    several = {q: data.qrels[args.split][q] for q, found in positives.items() if len(found) > 1}
    data = dataclasses.replace(data, qrels={args.split: several})
    data = sets.cut(data, {args.split: args.queries}, args.passages)
    positives = data.positives(args.split, args.min_relevance)
    queries = data.queries.select(positives)
    folder = pathlib.Path(args.vectors or tempfile.mkdtemp())
    passages_nd = vectors.of(folder, args.model, data.corpus.texts, "passage", args.max_length)
    queries_qd = vectors.of(folder, args.model, queries.texts, "query", args.max_length)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    same = SameText.of(data.corpus.texts)
    rows = Ragged.from_rows([[data.corpus.row[p] for p in r] for r in positives.values()], np.int32)
    rows = SameText.of(queries.texts).share(rows)
    ranker = DenseRanker(queries_qd, passages_nd, functools.partial(make_index, mesh=mesh))
    numbers = np.arange(len(queries), dtype=np.int32)
    found = candidates_lib.find(numbers, numbers, ranker, rows, args.depth)
    found, ranker = distinct(found, ranker, same)
    visible = visible_positives(found.positive_rows, queries.ids, data.corpus.ids, args.seed)
    chosen = queries_to_audit(found.positive_rows, queries.ids, args.queries, args.seed)
    one = np.sort(sample(chosen, queries.ids, len(chosen) // 2, args.seed + 1))
    parts = []
    for part in (one, np.setdiff1d(chosen, one)):
        shown = visible_rows(found.positive_rows, visible).take(part)
        texts = [queries.texts[number] for number in part]
        barred = exclusion.build(texts, data.corpus, shown, Exclude(), texts=same).rows
        how = {"excluded": barred, "query_ids": queries.ids, "texts": same}
        parts.append(hide(found, ranker, part, visible, **how))
    return parts[0], parts[1]


def mined(hidden: Hidden, options: Options, model: RiskModel | None) -> dict[str, np.ndarray]:
    """By query: negatives, false ones among them, and the sum of their hardness."""
    ids = [str(i) for i in range(int(hidden.candidates.passage_rows.values.max()) + 1)]
    teacher = Teacher("t", hidden.candidates, hidden.ranker, risk=model)
    negatives, _ = mine(
        [teacher],
        options,
        excluded=hidden.excluded,
        query_ids=hidden.query_ids,
        passage_ids=ids,
        texts=hidden.texts,
    )
    entries = negatives.negative_rows
    span = np.int64(2**31)
    false = np.isin(
        entries.row_of * span + entries.values,
        hidden.hidden_rows.row_of * span + hidden.hidden_rows.values,
    )
    anchors = hidden.candidates.positive_scores.values[entries.row_of]
    hardness = 1 + relative(negatives.negative_scores.values, anchors)
    queries = len(hidden.query_ids)
    return {
        "slots": entries.counts.astype(float),
        "false": np.bincount(entries.row_of[false], minlength=queries).astype(float),
        "hardness": np.bincount(entries.row_of, hardness, minlength=queries),
    }


def at_share(shares: np.ndarray, hardness: np.ndarray, share: float) -> float:
    """The hardness of percents at a share; the best of those that leave no more."""
    order = np.argsort(shares, kind="stable")
    best = np.maximum.accumulate(hardness[order])
    return float(np.interp(share, shares[order], best))


def compared(hidden: Hidden, model: RiskModel, percents: list[dict], resamples: int) -> list[dict]:
    """A row per budget."""
    draws = [np.ones((1, len(hidden.query_ids))), *weights(len(hidden.query_ids), resamples, 0)]
    weights_bq = np.concatenate(draws)

    def ratios(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        slots = np.maximum(weights_bq @ found["slots"], 1)
        return weights_bq @ found["false"] / slots, weights_bq @ found["hardness"] / slots

    percent = [ratios(found) for found in percents]
    shares_bp = np.stack([share for share, _ in percent], 1)
    hardness_bp = np.stack([hard for _, hard in percent], 1)
    rows = []
    for budget in BUDGETS:
        options = Options(Rule("naive"), risk=model.method, risk_budget=budget)
        found = mined(hidden, options, model)
        share_b, hard_b = ratios(found)
        same_b = np.array(
            [at_share(*row) for row in zip(shares_bp, hardness_bp, share_b, strict=True)]
        )
        low, high = np.percentile((hard_b - same_b)[1:], [2.5, 97.5])
        rows.append(
            {
                "budget": budget,
                "share": round(float(share_b[0]), 4),
                "hardness": round(float(hard_b[0]), 4),
                "percent_hardness": round(float(same_b[0]), 4),
                "harder": [round(float(x), 4) for x in (hard_b[0] - same_b[0], low, high)],
                "fill": round(found["slots"].sum() / (4 * len(hidden.query_ids)), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--split", default="train")
    parser.add_argument("--min_relevance", type=int, default=1)
    parser.add_argument("--queries", type=int, default=2000, help="0: all with several positives")
    parser.add_argument("--passages", type=int, default=0, help="a part of the corpus; 0: all")
    parser.add_argument("--vectors", default="", help="folder that keeps vectors")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=None)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fit, count = halves(args)
    alone = dataclasses.replace(fit, excluded=join_rows(fit.excluded, fit.hidden_rows))
    percents = [mined(count, Options(Rule("perc_pos", percent=p)), None) for p in PERCENTS]
    result: dict = {"data": args.data, "queries": [len(fit.query_ids), len(count.query_ids)]}
    models = (risk_fit.fit_labels(fit), risk_fit.fit_ranks(alone, rank_law(alone)))
    for model in models:
        rows = risk_fit.reliability(model, count, resamples=args.resamples)
        total = sum(row.candidates for row in rows)
        error = sum(row.candidates * abs(row.predicted - row.counted) for row in rows) / total
        budgets = compared(count, model, percents, args.resamples)
        for row in rows:
            print(
                f"{model.method:<7} predicted {row.predicted:6.1%}  counted {row.counted:6.1%} "
                f"({row.counted_low:.1%} … {row.counted_high:.1%})  {row.candidates:>8,}"
            )
        for row in budgets:
            print(f"{model.method:<7} {row}")
        result[model.method] = {
            "candidates": total,
            "predicted": round(sum(r.candidates * r.predicted for r in rows) / total, 4),
            "counted": round(sum(r.candidates * r.counted for r in rows) / total, 4),
            "mean_error": round(error, 4),
            "worst_error": round(
                max(abs(r.predicted - r.counted) for r in rows if r.candidates >= 200), 4
            ),
            "budgets": budgets,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

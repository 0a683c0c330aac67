"""What every query should get, from the whole corpus, in plain loops; and tables to mine from."""

import numpy as np

from nvret_jax.data.hashing import stable_hash, uniform01
from nvret_jax.data.ragged import Ragged
from nvret_jax.search.candidates import Candidates


def full_order(scores_n):
    """Rows by score descending, row ascending."""
    return np.lexsort((np.arange(len(scores_n)), -scores_n))


def table(scores_qn, positives, depth):
    """Candidates as a search of depth `depth` would store them."""
    order = [full_order(row)[:depth] for row in scores_qn]
    return Candidates(
        np.arange(len(scores_qn), dtype=np.int32),
        Ragged.from_rows(order, np.int32),
        Ragged.from_rows([s[o] for s, o in zip(scores_qn, order, strict=True)], np.float32),
        Ragged.from_rows(positives, np.int32),
        Ragged.from_rows(
            [s[list(p)] for s, p in zip(scores_qn, positives, strict=True)], np.float32
        ),
    )


class MatrixRanker:
    """A teacher that knows all scores; remembers how often and for how many it was asked."""

    deep = True

    def __init__(self, scores_qn):
        self.scores_qn = np.asarray(scores_qn, np.float32)
        self.queries, self.passages = self.scores_qn.shape
        self.calls = []

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None):
        self.calls.append(len(numbers))
        scores_sk = np.full((len(numbers), k), -np.inf, np.float32)
        rows_sk = np.full((len(numbers), k), -1, np.int32)
        for i, q in enumerate(numbers):
            scores_n = self.scores_qn[q]
            left = [
                r
                for r in full_order(scores_n)
                if (ceiling_q is None or scores_n[r] < ceiling_q[i])
                and (exclude is None or r not in exclude[i])
            ][:k]
            scores_sk[i, : len(left)], rows_sk[i, : len(left)] = scores_n[left], left
        return scores_sk, rows_sk

    def score(self, numbers, pairs):
        return self.scores_qn[np.asarray(numbers)[pairs.row_of], pairs.values]


def allowed(score, anchor, rule):
    """Whether a rule lets a score pass, by the inequalities of the paper, in float64."""
    score, anchor = np.float64(score), np.float64(anchor)
    passes = True
    for name in rule.name.split("+"):
        if name == "abs":
            passes &= np.float32(score) <= np.float32(rule.threshold)
        elif name == "margin_pos":
            passes &= _below(score, anchor - rule.margin, rule)
        elif name == "perc_pos":
            passes &= _below(score, anchor - abs(anchor) * (1 - rule.percent), rule)
    return bool(passes)


def _below(score, limit, rule):
    return score <= limit if rule.keep_equal else score < limit


def brute_survivors(scores_n, positives, excluded, anchor, rule, depth=None):
    """(row, raw rank) of all passages that may be negatives, best first; no search is cut short."""
    rank, passed = 0, []
    for row in full_order(scores_n)[:depth]:
        if row in positives or row in excluded:
            continue
        rank += 1
        inside = rule.ranks != "raw" or (
            rank > rule.ranks_to_skip and (not rule.max_rank or rank <= rule.max_rank)
        )
        if inside and allowed(scores_n[row], anchor, rule) and scores_n[row] >= rule.min_score:
            passed.append((int(row), rank))
    if rule.ranks == "survivors":
        passed = passed[rule.ranks_to_skip : rule.max_rank or None]
    return passed


def brute_draw(rows, scores_n, options, task_hash, ids):
    """The negatives drawn among `rows`, best first."""
    n, size = options.num_negatives, max(options.num_negatives, options.sample_from)
    if options.sampling == "top":
        return rows[:n]
    keys = []
    for place, row in enumerate(rows[:size]):
        u = uniform01(options.seed, task_hash, stable_hash([ids[row]]))[0]
        key = -np.log(-np.log(u))
        if options.sampling != "uniform":
            key += np.float64(scores_n[row]) / options.sample_temperature
        if options.sampling == "top1_softmax" and place == 0:
            key = np.inf
        if place >= options.sample_from:
            key = -np.inf
        keys.append((-key, place))
    return [rows[place] for place in sorted(place for _, place in sorted(keys)[:n])]

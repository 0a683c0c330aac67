"""sentence-transformers' `mine_hard_negatives` and this project, given the same rows.

Their side works on texts: columns of (query, positive), and a list of passages. Ours works on rows
of two tables. `Inputs` maps one to the other, `options_of` their arguments to our options,
`theirs` and `ours` run, and `written` puts ours through the writers of their four output forms.

Scores are chosen freely by giving every query a unit vector of its own: the vector of a passage is
then its column of the table of scores, and every product is exact.
"""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import pathlib
from collections.abc import Callable

import datasets
import numpy as np
import torch
from sentence_transformers.util import mine_hard_negatives

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.interchange import sentence_transformers as forms
from nvret_jax.data.interchange.rows import from_negatives
from nvret_jax.data.ragged import Ragged
from nvret_jax.files.fields import Notes
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options, compatible
from nvret_jax.mining.rescoring import rescore
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.mining.survivors import Tasks, survivors
from nvret_jax.search.candidates import Candidates, find
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.rankers.ranker import DenseRanker

torch.set_num_threads(1)  # these products are tiny
FILTERS = ("max_score", "min_score", "absolute_margin", "relative_margin")
COLUMNS = ("question", "answer")


# --- worlds: texts and their scores --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """What both sides are given.

    Attributes:
        pairs: (query, positive), as many rows as the data set has.
        corpus: the passages given, or None.
        queries, passages: the distinct texts, in the order their side numbers them.
        scores_qn: float32, of each of these.
    """

    pairs: list[tuple[str, str]]
    corpus: list[str] | None
    queries: list[str]
    passages: list[str]
    scores_qn: np.ndarray

    @property
    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """queries_qd and passages_nd whose products are the scores."""
        return np.eye(len(self.queries), dtype=np.float32), np.ascontiguousarray(self.scores_qn.T)


def world(pairs, corpus, scores: Callable[[int, int], np.ndarray]) -> World:
    """A world over given texts; `scores(Q, N)` fills the table."""
    given = inputs(pairs, corpus)
    queries, passages = list(given.queries.texts), list(given.corpus.texts)
    table = scores(len(queries), len(passages)).astype(np.float32)
    return World(pairs, corpus, queries, passages, table)


def grid(q: int, n: int, rng, low=-64, high=64, step=1 / 64) -> np.ndarray:
    """Scores on a grid, no two of a query alike: equality at a margin is common, ties are not."""
    values = np.arange(low, high)
    return np.stack([rng.permutation(values)[:n] for _ in range(q)]) * step


class Stub:
    """A SentenceTransformer as far as `mine_hard_negatives` asks."""

    device = torch.device("cpu")

    def __init__(self, given: World):
        queries_qd, passages_nd = given.vectors
        self._queries = dict(zip(given.queries, queries_qd, strict=True))
        self._passages = dict(zip(given.passages, passages_nd, strict=True))

    def encode_query(self, texts, **_):
        return np.stack([self._queries[text] for text in texts])

    def encode_document(self, texts, **_):
        return np.stack([self._passages[text] for text in texts])

    def similarity(self, queries_qd, passages_nd):
        return torch.as_tensor(queries_qd) @ torch.as_tensor(passages_nd).T

    def similarity_pairwise(self, queries_md, passages_md):
        return (torch.as_tensor(queries_md) * torch.as_tensor(passages_md)).sum(dim=1)

    def get_embedding_dimension(self):
        return len(self._queries)


class CrossEncoder:
    """A cross-encoder that knows all scores; counts what it was asked."""

    def __init__(self, given: World, scores_qn: np.ndarray):
        self.scores_qn = scores_qn.astype(np.float32)
        self._row = {text: row for row, text in enumerate(given.queries)}
        self._column = {text: column for column, text in enumerate(given.passages)}
        self.pairs = 0

    def predict(self, pairs, **_):
        self.pairs += len(pairs)
        cells = [(self._row[query], self._column[passage]) for query, passage in pairs]
        return torch.tensor([self.scores_qn[cell] for cell in cells])

    def score_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """The same for our side, which asks by rows."""
        return self.scores_qn[pairs[:, 0], pairs[:, 1]]


# --- their arguments as ours ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Columns of texts as tables and rows.

    Attributes:
        queries: the distinct queries, by first appearance.
        corpus: the distinct passages: those given, then the positives.
        positive_rows: int32, per query its distinct positives, by first appearance.
        max_positives: the most rows of one query, a row that comes twice counted twice; their
            window of candidates depends on it.
    """

    queries: TextTable
    corpus: TextTable
    positive_rows: Ragged
    max_positives: int


def inputs(pairs: list[tuple[str, str]], corpus: list[str] | None = None) -> Inputs:
    """Maps their arguments to `Inputs`; equal texts are one, to the last character."""
    passages = list(dict.fromkeys([*(corpus or []), *(positive for _, positive in pairs)]))
    row = {text: i for i, text in enumerate(passages)}
    lists: dict[str, list[int]] = {}
    for query, positive in pairs:
        lists.setdefault(query, []).append(row[positive])
    return Inputs(
        TextTable(tuple(f"q{i}" for i in range(len(lists))), list(lists)),
        TextTable(tuple(f"p{i}" for i in range(len(passages))), passages),
        Ragged.from_rows([list(dict.fromkeys(rows)) for rows in lists.values()], np.int32),
        max(map(len, lists.values())),
    )


def options_of(settings: dict, max_positives: int) -> Options:
    """Their arguments as options with the preset."""
    given = {name: settings.get(name) for name in FILTERS}
    names, values = [], {}
    for rule, value, of in (
        ("abs", "threshold", given["max_score"]),
        ("margin_pos", "margin", given["absolute_margin"]),
        ("shifted", "shift", settings.get("range_min") or None),
    ):
        if of is not None:
            names.append(rule)
            values[value] = of
    if given["relative_margin"] is not None:
        names.append("perc_pos")
        values["percent"] = 1 - given["relative_margin"]
    if given["min_score"] is not None:
        values["min_score"] = given["min_score"]
    options = Options(
        rule=Rule("+".join(names) or "naive", max_rank=settings.get("range_max") or 0, **values),
        num_negatives=settings.get("num_negatives", 3),
        sampling="uniform" if settings.get("sampling_strategy") == "random" else "top",
    )
    return compatible(options, "sentence_transformers", max_positives, rescored=rescores(settings))


def rescores(settings: dict) -> bool:
    """Whether their cross-encoder is used at all: only with a filter."""
    filtered = any(settings.get(name) is not None for name in FILTERS)
    return settings.get("cross_encoder") is not None and filtered


# --- running both --------------------------------------------------------------------------------


@functools.cache
def columns_of(pairs: tuple[tuple[str, str], ...]) -> datasets.Dataset:
    """Pairs as their data set."""
    return datasets.Dataset.from_dict(dict(zip(COLUMNS, zip(*pairs, strict=True), strict=True)))


def theirs(model, pairs, corpus=None, **settings) -> list[dict]:
    """Their rows."""
    data = columns_of(tuple(pairs))
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        out = mine_hard_negatives(data, model, corpus=corpus, **({"verbose": False} | settings))
    return out.to_list()


def dense_ranker(given: World, backend: str) -> DenseRanker:
    """Our search over a world's vectors."""
    return DenseRanker(*given.vectors, lambda passages: make_index(passages, backend=backend))


def ours(given: Inputs, ranker, settings: dict, depth: int = 0, seed: int = 0) -> Negatives:
    """Our negatives with the preset, no passage excluded.

    Args:
        given: tables and positives.
        ranker: scores them.
        settings: their arguments.
        depth: candidates stored, where more than the window.
        seed: of random sampling.
    """
    options = dataclasses.replace(options_of(settings, given.max_positives), seed=seed)
    candidates = stored(given, ranker, max(options.window, depth))
    if rescores(settings):
        score_pairs = settings["cross_encoder"].score_pairs
        candidates, _ = rescore(candidates, score_pairs, options.window, "rescored")
    empty = Ragged.from_rows([[]] * len(given.queries), np.int32)
    teacher = Teacher("teacher", candidates, ranker)
    negatives, _ = mine(
        [teacher],
        options,
        excluded=empty,
        query_ids=given.queries.ids,
        passage_ids=given.corpus.ids,
    )
    if settings.get("include_positives"):
        negatives = with_positives(negatives, candidates, options)
    return negatives


def stored(given: Inputs, ranker, depth: int) -> Candidates:
    """Candidates of all queries."""
    numbers = np.arange(len(given.queries))
    return find(numbers, numbers, ranker, given.positive_rows, depth)


def with_positives(negatives: Negatives, candidates: Candidates, options: Options) -> Negatives:
    """The ranking itself, positives in their places, as their `include_positives` gives it."""
    tasks = Tasks.of(candidates.positive_rows, "min")
    nobody = Ragged.from_rows([[]] * len(candidates), np.int32)
    pool, _ = survivors(
        dataclasses.replace(candidates, positive_rows=nobody),
        tasks,
        options.rule.ceilings(anchors(candidates.positive_scores, "min")),
        options.rule,
        options.num_negatives,
        excluded=nobody,
        window=options.window,
    )
    return dataclasses.replace(negatives, negative_rows=pool.rows, negative_scores=pool.scores)


# --- our rows in their forms ---------------------------------------------------------------------


def written(
    negatives: Negatives, given: Inputs, form: str, *, scored: bool, count: int, path: pathlib.Path
) -> list[dict]:
    """What the writer of a form makes of negatives that their function would have returned.

    Their function drops rows that a form has no use for; what is done here before writing is that,
    and nothing else.
    """
    found = negatives.negative_rows.counts
    if form == "n-tuple":  # one width, the one asked for
        negatives = negatives.take(np.flatnonzero(found == count))
    elif form != "labeled-pair":
        negatives = negatives.take(np.flatnonzero(found > 0))
    if form == "labeled-list":
        negatives = one_positive_a_row(negatives)
    if not len(negatives):  # no file is written without a row; theirs is an empty data set
        return []
    rows = from_negatives(negatives, given.queries, given.corpus)
    rows.meta["sentence-transformers"] = {"columns": list(COLUMNS)}
    forms.writer(form, scored=scored)(rows, path, Notes())
    return [json.loads(line) for line in path.read_text().splitlines()]


def one_positive_a_row(negatives: Negatives) -> Negatives:
    """Each positive in a row of its own, with all of the negatives."""
    places = np.arange(len(negatives.positive_rows.values) + 1)
    single = {
        name: Ragged(places, getattr(negatives, name).values)
        for name in ("positive_rows", "positive_scores")
    }
    return dataclasses.replace(negatives.take(negatives.positive_rows.row_of), **single)


def bare(rows: list[dict]) -> tuple[list[dict], np.ndarray]:
    """Rows without their scores, and the scores, float32, in order."""
    scores, texts = [], []
    for row in rows:
        row = dict(row)
        for name in ("score", "scores"):
            if name in row:
                scores.append(np.atleast_1d(np.asarray(row.pop(name), np.float32)))
        texts.append(row)
    return texts, np.concatenate([*scores, np.zeros(0, np.float32)])


def by_positive(rows: list[dict]) -> dict[tuple[str, str], tuple[list[str], list[float], float]]:
    """Rows of scored lists: (query, positive) -> negatives, their scores, the positive's score."""
    query, texts = COLUMNS
    return {
        (row[query], row[texts][0]): (
            row[texts][1:],
            np.float32(row["scores"][1:]).tolist(),
            row["scores"][0],
        )
        for row in rows
    }

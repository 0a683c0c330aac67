"""`mine`: hard negatives for a data set or for lists of texts; nothing is written."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvret_jax import options
from nvret_jax.data import arguments
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.data.options import GRADE, SPLIT
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining import distilled, miner, risk
from nvret_jax.mining import given as given_lib
from nvret_jax.mining import targets as targets_lib
from nvret_jax.mining.audit import risk_fit
from nvret_jax.mining.audit.calibrate import calibrate, check_enough
from nvret_jax.mining.exclude import exclusion
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import (
    COMPAT_TAKES,
    GIVEN_MODES,
    Calibration,
    Exclude,
    Options,
    calibrated,
    compatible,
)
from nvret_jax.mining.rules import VALUES, beyond_cosines
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import blocks
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.index import checks
from nvret_jax.search.index.backend import BACKEND, make_index
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker, Ranker

_MINE = {
    **blocks.takes_by_key(Options),
    "seed": options.SEED,
    "compat": COMPAT_TAKES,
    "exclude": options.Anything("nvret_jax.Exclude(…)", (Exclude,), unset=True),
    "split": SPLIT,
    "min_relevance": GRADE,
    "given": options.choice(*GIVEN_MODES),
    "mining": options.Anything("nvret_jax.Mining(…)", (Options,), unset=True),
    "depth": options.whole(1),
    "backend": BACKEND,
    "progress": options.flag(),
}


# Arguments of sentence-transformers' mine_hard_negatives that have other names here.
_OTHERS = {
    "relative_margin": "relative_margin=r is percent=1 - r, as in percent=0.95",
    "absolute_margin": "absolute_margin=m is rule='margin_pos', margin=m",
    "max_score": "max_score=t is rule='abs', threshold=t",
    "range_min": "range_min=n is rule='shifted+perc_pos', shift=n",
    "range_max": "range_max=n is max_rank=n",
    "sampling_strategy": "give sampling='top' or sampling='uniform'",
    "dataset": "give it first, as in mine(dataset, teacher=encoder)",
    "data": "give it first, as in mine(data, teacher=encoder)",
    "model": "give teacher=encoder",
    "encoder": "give teacher=encoder",
    "corpus": "give passages=",
    "cross_encoder": "a run rescores, by config.rescorer.model",
    "use_faiss": "give backend='faiss'",
    "batch_size": "the encoder chooses how many texts it embeds at a time",
    "show_progress_bar": "give progress=",
    "verbose": "give progress=",
    "anchor_column_name": "load_dataset(…) finds columns, or takes '?query=NAME'",
    "positive_column_name": "load_dataset(…) finds columns, or takes '?passage=NAME'",
    "include_positives": "the positives are in the table: negatives.positive_rows",
    "output_format": "python -m nvret_jax.main convert writes other tools' formats",
}


@blocks.keywords(Options, others=_OTHERS, seed=Options.seed)
def mine(
    queries: Dataset | Sequence[str],
    passages: Sequence[str] | None = None,
    positives: Sequence[Sequence[int]] | None = None,
    *,
    teacher: Encoder | Ranker | Sequence[Encoder | Ranker] | None = None,
    query_embeddings: np.ndarray | None = None,
    passage_embeddings: np.ndarray | None = None,
    targets: Encoder | Ranker | Sequence[Encoder | Ranker] | None = None,
    split: str = "train",
    min_relevance: int = 1,
    given: str = "add",
    mining: Options | None = None,
    compat: str = "",
    exclude: Exclude | None = None,
    query_ids: Sequence[str] | None = None,
    passage_ids: Sequence[str] | None = None,
    depth: int = 100,
    backend: str = "auto",
    progress: bool = True,
    **how: Any,
) -> Negatives:
    """Mines hard negatives for queries with known positives.

    Args:
        queries: a data set, with its passages and judgments; or Q texts, in any ordered collection:
            a list, a generator, a column.
        passages: N texts, likewise.
        positives: for each query the numbers of its relevant passages, at least one; a single
            number is a list of one. Ids or texts are not accepted. Queries with equal texts share
            theirs, unless `exclude.same_text` is off.
        teacher: an encoder, which embeds both sides, or anything else that ranks (`search.rankers`,
            such as `Bm25Ranker(queries, passages)`); or several, the most accurate first. Not
            needed when both embeddings are given.
        query_embeddings: float [Q, D]; unit length, so that scores are cosines. An array, a
            tensor, or a list of vectors.
        passage_embeddings: float [N, D], likewise, or a store that slices by rows.
        targets: whose scores distillation fits, if not those that mining ranked by: as `teacher`,
            one or several, calibrated and averaged; see `mining.targets`.
        rule, percent, margin, threshold, shift, anchor, max_rank, min_score: see
            `mining.rules.Rule`; the defaults are the paper's best (TopK-PercPos, 95 %). 'auto' for
            percent or margin chooses the value for each teacher, on at least 100 queries; see
            `mining.audit.calibrate`.
        num_negatives: kept per query; a query with too few passages gets fewer, see `short`.
        sampling, sample_from, sample_temperature: see `mining.sampling`.
        ensemble: how several teachers make one list; see `mining.ensemble`.
        second_search, short: see `mining.options.Options`.
        num_distilled: candidates per query that are stored for distillation alone; see
            `mining.distilled`.
        risk, risk_budget: how likely each negative is false, on at least 100 queries; see
            `mining.risk`.
        split: of a data set, the split with the queries.
        min_relevance: of a data set, the lowest judgment that makes a passage positive.
        given: how to use negatives that come with a data set: 'add' alternates them with mined
            ones, 'only' mines none, 'ignore' leaves them out.
        mining: `nv.Mining(…)`, all options of mining in one value, instead of the arguments from
            `rule` to `short` and `seed`.
        compat: '' or 'sentence_transformers'; see `mining.options`.
        exclude: passages that are never negatives; default: the query's own text and texts equal
            to a positive's, and no text twice. See `mining.options.Exclude`.
        query_ids, passage_ids: what draws depend on, different strs; default: the numbers.
        seed: of draws.
        depth: candidates considered before a second search; see `mining.survivors`.
        backend: 'auto', 'device' or 'faiss'.
        progress: show bars.

    Returns:
        Rows of the passages for each query (for each query and positive if `anchor` is 'own'), with
        teacher scores and ranks. For a data set, `query_rows` are rows of `dataset.queries`.

    Raises:
        InputError: lists that do not match, a row that is not a passage, no teacher, or invalid
            options; one line, before anything is computed.
    """
    options.check_arguments("mine", {**locals(), **how}, _MINE)
    data, rows_q, provided = None, None, None
    if isinstance(queries, Dataset):
        data = queries
        for name, value in (("passages", passages), ("positives", positives)):
            if value is not None:
                raise InputError(f"mine: {name} are given, and a data set, which has its own")
        (rows_q, provided), lists = _of_dataset(data, split, min_relevance)
        given_lib.check(given, provided, repr(data.name))
        queries, passages, positives, query_ids, passage_ids = lists
    elif passages is None or positives is None:
        raise InputError(_incomplete(queries, "passages" if passages is None else "positives"))
    queries = arguments.texts(queries, "mine: queries")
    passages = arguments.texts(passages, "mine: passages")
    query_ids = arguments.ids(query_ids, len(queries), "mine: query_ids")
    passage_ids = arguments.ids(passage_ids, len(passages), "mine: passage_ids")
    if mining is not None:
        how = _values(mining, how)
    _check_cosines(teacher, {name: how[name] for name in ("margin", "threshold")})
    auto = calibrated(how)
    for name in auto:
        check_enough(name, len(queries), "mine: ")
    seed = how["seed"]
    asked = blocks.read(Options, how, seed=seed)
    positive_rows = _positive_rows(positives, len(queries), len(passages))
    if exclude is None:
        off = compat == "sentence_transformers"
        exclude = Exclude(own_text="off", same_text=False) if off else Exclude()
    same = SameText.of(passages) if exclude.same_text else None
    if exclude.same_text:
        positive_rows = SameText.of(queries).share(positive_rows)
    asked = compatible(asked, compat, int(positive_rows.counts.max(initial=0)))
    several = [] if targets is None else targets
    several = list(several) if isinstance(several, list | tuple) else [several]
    for one in several:
        _check_teacher(one, "targets")
    rankers = _rankers(
        queries, passages, teacher, query_embeddings, passage_embeddings, backend, progress
    )
    # A teacher that is a target as well has embedded both sides.
    known = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    made = {id(one): ranker for one, ranker in zip(known, rankers, strict=True)}
    fitted = [
        made.get(id(one)) or _rankers(queries, passages, one, None, None, backend, progress)[0]
        for one in several
    ]
    depth = max(depth, asked.window)
    numbers = np.arange(len(queries), dtype=np.int32)
    teachers = []
    for number, ranker in enumerate(rankers):
        found = candidates_lib.find(numbers, numbers, ranker, positive_rows, depth)
        teachers.append(miner.Teacher(f"teacher {number}", *distinct(found, ranker, same)))
    vectors = {}
    if exclude.cosine and isinstance(rankers[0], DenseRanker):
        vectors = {"passages_nd": rankers[0].passages_nd, "search": rankers[0].index.search}
    corpus = TextTable(tuple(passage_ids), passages)

    def exclusions(numbers: np.ndarray, positive_rows: Ragged) -> Ragged:
        texts = [queries[number] for number in numbers]
        made = exclusion.build(texts, corpus, positive_rows, exclude, texts=same, **vectors)
        return made.rows

    for number, one in enumerate(teachers if auto else ()):
        own = asked.rule
        for name in auto:
            choice = calibrate(
                one.candidates,
                one.ranker,
                dataclasses.replace(asked, rule=own),  # a second value sees the first
                name,
                target=Calibration.target,
                max_queries=Calibration.queries,
                excluded=exclusions,
                query_ids=query_ids,
                passage_ids=passage_ids,
                seed=seed,
                teacher=one.name,
                texts=same,
            )
            own = dataclasses.replace(own, **{VALUES[name]: choice.value})
        teachers[number] = dataclasses.replace(one, rule=own)
    for number, one in enumerate(teachers if asked.risk else ()):
        model, _ = risk_fit.estimate(
            one.candidates,
            asked.risk,
            max_queries=Calibration.queries,
            excluded=exclusions,
            query_ids=query_ids,
            passage_ids=passage_ids,
            seed=seed,
            texts=same,
        )
        teachers[number] = dataclasses.replace(one, risk=model)
    excluded = exclusions(numbers, positive_rows)
    negatives, _ = miner.mine(
        teachers,
        asked,
        excluded=excluded,
        query_ids=query_ids,
        passage_ids=passage_ids,
        texts=same,
    )
    if data is not None:
        negatives, _ = given_lib.combine(
            negatives,
            provided,
            given,
            teachers[0],
            excluded=excluded,
            most=asked.num_negatives,
            texts=same,
        )
    if asked.risk:
        models = {one.name: (one.candidates, one.risk) for one in teachers}
        found = risk.of_negatives(negatives, models, asked.rule)
        negatives = dataclasses.replace(negatives, negative_risks=found)
    if asked.num_distilled:
        negatives = distilled.add(negatives, teachers[0].candidates, excluded, asked.num_distilled)
    if fitted:
        scores = {
            f"target {number}": targets_lib.of_queries(ranker.score, negatives.query_rows)
            for number, ranker in enumerate(fitted)
        }
        negatives, _ = targets_lib.add(
            negatives,
            scores,
            query_ids=[query_ids[number] for number in negatives.query_rows],
            passage_ids=passage_ids,
            seed=seed,
            texts=same,
        )
    if data is None:
        return negatives
    return dataclasses.replace(negatives, query_rows=rows_q[negatives.query_rows])


def _values(mining: Options, how: dict[str, Any]) -> dict[str, Any]:
    """The keywords for one value; InputError if other keywords are given, too."""
    for key, one in blocks.entries(Options):
        if how[key] != one.config_default:
            raise InputError(f"mine: {key} is given, and mining=Mining(…), which has it too")
    return blocks.values(mining) | {"seed": mining.seed}


def _of_dataset(data: Dataset, split: str, min_relevance: int) -> tuple[tuple, tuple]:
    """A data set as rows of its queries and their given negatives, and as the lists it holds."""
    positives = data.positives(split, min_relevance)
    row, own = data.corpus.row, [data.queries.row[query] for query in positives]
    lists = (
        [data.queries.texts[one] for one in own],
        data.corpus.texts,
        [[row[passage] for passage in passages] for passages in positives.values()],
        list(positives),
        data.corpus.ids,
    )
    provided = given_lib.rows_of(data.given.get(split, {}), list(positives), row)
    return (np.array(own, np.int32), provided), lists


def _incomplete(queries: Any, missing: str) -> str:
    if isinstance(queries, str | os.PathLike):
        return f"mine: {options.shown(queries)}: give the data set, load_dataset({str(queries)!r})"
    return (
        f"mine: argument '{missing}' is missing; give queries, passages and positives, or a data "
        "set"
    )


def _check_cosines(teacher: Any, values: dict[str, Any]) -> None:
    """Raises InputError for values out of the range of cosines, if all scores are cosines."""
    several = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if all(one is None or (isinstance(one, Encoder) and one.spec.normalize) for one in several):
        for name, what in beyond_cosines(values):
            raise InputError(f"mine: {options.conflict(name, values[name], what)}")


def _positive_rows(positives, queries: int, passages: int) -> Ragged:
    """The given positives, checked, without repetitions, in the given order."""
    rows = arguments.rows(
        positives, queries, passages, "mine: positives", one_each=True, distinct=True
    )
    if (rows.counts == 0).any():
        empty = int(np.argmin(rows.counts))
        raise InputError(f"mine: positives: query {empty} has no positive; leave such queries out")
    return rows


def _rankers(
    queries, passages, teacher, query_embeddings, passage_embeddings, backend, progress
) -> list[Ranker]:
    """The rankers for the given teachers and embeddings."""
    several = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if not several:
        raise InputError(f"mine: teacher={teacher!r}: expected one or more")
    if teacher is None and (query_embeddings is None or passage_embeddings is None):
        raise InputError("mine: give a teacher, or query_embeddings and passage_embeddings")
    if len(several) > 1 and (query_embeddings is not None or passage_embeddings is not None):
        raise InputError(f"mine: {len(several)} teachers, but embeddings for one")
    for one in several:
        if one is not None:  # embeddings are given in its place
            _check_teacher(one, "teacher")
    if query_embeddings is not None:
        query_embeddings = arguments.vectors(query_embeddings, "mine: query_embeddings")
        query_embeddings = checks.check_queries(query_embeddings, None, "mine: query_embeddings")
    if passage_embeddings is not None:
        passage_embeddings = arguments.vectors(passage_embeddings, "mine: passage_embeddings")
        checks.check_passages(passage_embeddings, "mine: passage_embeddings")
    for what, vectors, texts in (
        ("query", query_embeddings, queries),
        ("passage", passage_embeddings, passages),
    ):
        if vectors is not None and len(texts) != vectors.shape[0]:
            found = vectors.shape[0]
            raise InputError(f"mine: {found} {what} embeddings for {len(texts)} texts")
    out: list[Ranker] = []
    for one in several:
        if one is not None and not isinstance(one, Encoder):
            out.append(one)
            continue
        queries_qd, passages_nd = query_embeddings, passage_embeddings
        if passages_nd is None:
            passages_nd = one.encode(passages, kind="passage", progress=progress)
        if queries_qd is None:
            queries_qd = one.encode(queries, kind="query", progress=progress)
        mesh = None if one is None else one.mesh
        out.append(
            DenseRanker(
                queries_qd, passages_nd, functools.partial(make_index, mesh=mesh, backend=backend)
            )
        )
    for ranker in out:
        for what, found, texts in (
            ("query", ranker.queries, queries),
            ("passage", ranker.passages, passages),
        ):
            if found != len(texts):
                raise InputError(
                    f"mine: a teacher or target ranks for {found} {what} texts; expected "
                    f"{len(texts)}"
                )
    return out


def _check_teacher(one: Any, argument: str) -> None:
    """Raises InputError for objects that neither embed nor rank."""
    if isinstance(one, Encoder):
        return
    if isinstance(one, str):
        made = f"Encoder.from_pretrained({one!r})"
        if one.startswith("bm25"):
            made = "Bm25Ranker(queries, passages)"
        raise InputError(f"mine: {argument}={options.shown(one)}: give what it names, {made}")
    if not all(hasattr(one, name) for name in ("rank", "score", "queries", "passages")):
        raise InputError(
            f"mine: {argument}={options.shown(one)} ({type(one).__name__}): expected an Encoder, "
            "or what ranks, such as Bm25Ranker(queries, passages)"
        )

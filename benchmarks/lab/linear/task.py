"""What linear cells of one data set share: vectors, candidates of teachers, negatives by rule."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.lab import sets
from benchmarks.lab.linear import pairs, vectors
from nvret_jax import mesh as mesh_lib
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.load import load_dataset
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText, share_positives
from nvret_jax.mining import distilled, rescoring, risk, targets
from nvret_jax.mining import positives as positives_lib
from nvret_jax.mining.audit import risk_fit
from nvret_jax.mining.exclude import exclusion
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import RESCORER, Negatives
from nvret_jax.mining.options import Mining
from nvret_jax.options import blocks
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.rankers import teachers
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker, ListRanker, Ranker


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One data set as linear cells read it.

    Attributes:
        data: with one positive per training query visible, perhaps.
        tested: what is evaluated on, the same or another.
        config: of any cell of the set: its values that are not of mining or training.
        folder: of stored vectors.
        hidden: query id -> hidden positives.
        student: vectors of training queries and passages by the student of the round before, which
            is then the teacher; None in the first round.
        found: candidates so far.
    """

    data: Dataset
    tested: Dataset
    config: ConfigDict
    folder: pathlib.Path
    hidden: dict[str, set[str]]
    student: tuple[np.ndarray, np.ndarray] | None = None
    found: dict[tuple[str, str, int], Teacher] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def positives(self) -> dict[str, list[str]]:
        """Of the training queries."""
        judged = self.data.positives("train", self.config.data.min_relevance)
        return share_positives(judged, self.data.queries)

    @functools.cached_property
    def queries(self) -> Any:
        """The training queries."""
        return self.data.queries.select(self.positives)

    @functools.cached_property
    def positive_rows(self) -> Ragged:
        """As passage rows."""
        row = self.data.corpus.row
        return Ragged.from_rows(
            [[row[p] for p in ids] for ids in self.positives.values()], np.int32
        )

    @functools.cached_property
    def hidden_rows(self) -> Ragged:
        """Hidden positives of the training queries, as passage rows."""
        row = self.data.corpus.row
        rows = [sorted(row[p] for p in self.hidden.get(q, ())) for q in self.queries.ids]
        return Ragged.from_rows(rows, np.int32)

    @functools.cached_property
    def texts(self) -> SameText:
        """Which passages have equal texts."""
        return SameText.of(self.data.corpus.texts)

    def encoded(self, block: ConfigDict, split: str, data: Dataset | None = None) -> np.ndarray:
        """Vectors of a split's queries, or of the corpus where it is '', by an encoder's block."""
        data = self.data if data is None else data
        if split:
            texts = (self.queries if split == "train" else data.split_queries(split)).texts
            return vectors.of(self.folder, block.model, texts, "query", block.query_length or None)
        texts = data.corpus.texts
        return vectors.of(self.folder, block.model, texts, "passage", block.passage_length or None)

    def guide(self, config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of training queries and passages by the cell's first teacher with an encoder."""
        blocks_of = [
            config.teacher if name == "teacher" else config.teachers[name]
            for name in config.mining.teachers
        ]
        block = next(block for block in blocks_of if teachers.is_encoder(block.model))
        return self._vectors(block)

    def _vectors(self, block: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of training queries and passages by a teacher."""
        return self.student or (self.encoded(block, "train"), self.encoded(block, ""))

    def taught_by(self, student: tuple[np.ndarray, np.ndarray]) -> Task:
        """The task of the next round; `student`: vectors of training queries and passages."""
        return dataclasses.replace(self, student=student, found={})

    @functools.cached_property
    def excluded(self) -> Ragged:
        """What is never a negative, besides positives."""
        options = blocks.read(Mining, self.config.mining).exclusions
        return exclusion.build(
            self.queries.texts, self.data.corpus, self.positive_rows, options, texts=self.texts
        ).rows

    def teacher(self, name: str, model: str, seed: int) -> Teacher:
        """A teacher's candidates; `seed` counts for random ones alone."""
        key = name, model, seed
        if key not in self.found:
            self.found[key] = self._found(*key)
        return self.found[key]

    def _found(self, name: str, model: str, seed: int) -> Teacher:
        ranker = self._ranker(name, model, seed)
        numbers = np.arange(len(self.queries), dtype=np.int32)
        depth = self.config.search.depth
        found = candidates_lib.find(numbers, numbers, ranker, self.positive_rows, depth)
        return Teacher(name, *distinct(found, ranker, self.texts))

    def _ranker(self, name: str, model: str, seed: int) -> Ranker:
        if not teachers.is_encoder(model):
            kind, _, place = model.partition(":")
            return teachers.KINDS[kind].open(
                place,
                teachers.Task(
                    self.queries, self.data.corpus, self.positive_rows, self.texts, seed, True, None
                ),
            )
        block = self.config.teacher if name == "teacher" else self.config.teachers[name]
        mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        return DenseRanker(
            *self._vectors(block),
            functools.partial(make_index, mesh=mesh),
        )

    def negatives(self, config: ConfigDict) -> Negatives:
        """The table that a cell trains on; as the stage mine makes it.

        Args:
            config: of the cell. Of verdicts it may have those that name the hidden positives.
        """
        options = blocks.read(Mining, config.mining)
        asked = dataclasses.replace(options.options, seed=config.seed)
        excluded = self.excluded
        if options.judge.verdicts:
            excluded = join_rows(excluded, self.hidden_rows)
        found = []
        for name in config.mining.teachers:
            block = config.teacher if name == "teacher" else config.teachers[name]
            drawn = block.model == "random:"
            one = self.teacher(name, block.model, config.seed if drawn else 0)
            found.append(self._rescored(one, config))
        if asked.risk:
            found = [self._with_risk(one, options, excluded, config.seed) for one in found]
        how = {"query_ids": self.queries.ids, "passage_ids": self.data.corpus.ids}
        table, _ = mine(found, asked, excluded=excluded, texts=self.texts, **how)
        if asked.risk:
            models = {one.name: (one.candidates, one.risk) for one in found}
            risks = risk.of_negatives(table, models, asked.rule)
            table = dataclasses.replace(table, negative_risks=risks)
        if options.positives.max_rank:
            ranks = positives_lib.ranks(found[0].candidates, excluded)
            table, _ = positives_lib.apply(table, found[0].candidates, ranks, options.positives)
        if asked.num_distilled:
            table = distilled.add(table, found[0].candidates, excluded, asked.num_distilled)
        if options.targets:
            scores = {
                name: targets.of_queries(self._score(name, config), table.query_rows)
                for name in options.targets
            }
            table, made = targets.add(
                table,
                scores,
                query_ids=[self.queries.ids[number] for number in table.query_rows],
                passage_ids=self.data.corpus.ids,
                seed=0,
                texts=self.texts,
            )
            for one in made:
                likely = np.exp([one.log_likelihood, one.uniform])
                said = f"target {one.teacher}: factor {one.factor:.4g}, a positive has"
                print(f"{said} {likely[0]:.3f}, by chance {likely[1]:.3f}", flush=True)
        return table

    def _score(self, name: str, config: ConfigDict) -> targets.Score:
        """The scores of one of the teachers that distillation fits."""
        if name == RESCORER:
            scorer = rescoring.Chunked(self._pairs(config))
            return lambda numbers, rows: scorer.score_lists(numbers.astype(np.int64), rows)
        block = config.teacher if name == "teacher" else config.teachers[name]
        return self._ranker(name, block.model, 0).score

    def _pairs(self, config: ConfigDict) -> rescoring.ScorePairs:
        return functools.partial(
            pairs.of,
            self.folder,
            config.rescorer.model,
            config.rescorer.length or None,
            self.queries.texts,
            self.data.corpus.texts,
        )

    def _rescored(self, teacher: Teacher, config: ConfigDict) -> Teacher:
        """The teacher with the cross-encoder's scores, where mining reads them."""
        if not config.rescorer.model or config.rescorer.order == "unchanged":
            return teacher
        score = self._pairs(config)
        candidates, _ = rescoring.rescore(teacher.candidates, score, config.rescorer.depth)
        ranker = ListRanker(candidates.query_rows, len(self.data.corpus), score)
        return dataclasses.replace(teacher, candidates=candidates, ranker=ranker)

    def _with_risk(self, teacher: Teacher, options: Mining, excluded: Ragged, seed: int) -> Teacher:
        model, _ = risk_fit.estimate(
            teacher.candidates,
            options.options.risk,
            max_queries=options.calibration.queries,
            excluded=lambda numbers, positive_rows: excluded.take(numbers),
            query_ids=self.queries.ids,
            passage_ids=self.data.corpus.ids,
            seed=seed,
            texts=self.texts,
        )
        return dataclasses.replace(teacher, risk=model)

    def known(self, table: Negatives) -> dict[str, list[int]]:
        """Query id -> [negatives, hidden positives among them]."""
        ids, corpus = self.queries.ids, self.data.corpus.ids
        counts = {}
        for row, query in enumerate(table.query_rows.tolist()):
            mined = {corpus[p] for p in table.negative_rows[row].tolist()}
            counts[ids[query]] = [
                len(table.negative_rows[row]),
                len(mined & self.hidden.get(ids[query], set())),
            ]
        return counts


def read(made: sets.Made, config: ConfigDict, folder: pathlib.Path) -> Task:
    """The task of a data set."""
    hidden = sets.hidden_positives(str(made.hidden or ""))
    data, test = load_dataset(made.source), config.data.test
    tested = data if test == config.data.train else load_dataset(test)
    return Task(data, tested, config, folder, hidden)

"""Training batches, each a pure function of (seed, step).

Texts are tokenised once, before the first step: every process then knows the length of every text,
so all agree on the shape of a batch without communication, and a step needs no tokenising. The rows
of step i follow from the seed alone: every epoch has a permutation, made once and indexed by array
operations, at random or by clusters of similar rows (clusters.py). A process builds only the rows
that its devices hold. A resumed run therefore continues with exactly the batches it would have had.

`Examples` is one data set. A batch is made in two steps, because mixture.py joins rows of several
sets: `pick` selects its texts, `fill` writes their tokens and ids at given widths.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import GIVEN, RANDOM, Negatives
from nvret_jax.training.batches import drawing
from nvret_jax.training.batches.clusters import Clusters
from nvret_jax.training.batches.length_groups import Groups
from nvret_jax.training.batches.shapes import padded_width
from nvret_jax.training.batches.text_ids import Names, SetTexts, name_passages
from nvret_jax.training.options import Draw

Tokenize = Callable[[Sequence[str]], list[np.ndarray]]
# Token ids -> how many at the beginning are not pooled, text by text.
Unpooled = Callable[[list[np.ndarray]], np.ndarray]
# Token ids -> those that get a vector, and how many of them are attended to, text by text.
Expand = Callable[[list[np.ndarray]], tuple[list[np.ndarray], list[int]]]
_ORDER = 1  # a word that separates the seed of the order of rows
_NOTHING = {"i": -1, "f": -np.inf}  # a missing passage, a missing score


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of some of a table's texts.

    Attributes:
        place: int32, for each row of the table its row in `ids`; -1: not held.
        ids: int32, one row per text held.
        seen: int32, for each row the number of tokens that are attended to; the rest, mask tokens
            of an expanded query, get vectors, too.
        unpooled: int32, for each row the number of tokens at its beginning that are not pooled;
            None: all are pooled.
    """

    place: np.ndarray
    ids: Ragged
    seen: np.ndarray
    unpooled: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        rows: np.ndarray,
        tokenize: Tokenize,
        expand: Expand | None = None,
        unpooled: Unpooled | None = None,
    ) -> Tokens:
        """Tokenises `texts[r]` for the distinct given rows."""
        rows = np.unique(rows)
        rows = rows[rows >= 0]
        place = np.full(len(texts), -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        tokens = tokenize([texts[r] for r in rows])
        counts = None if unpooled is None else np.asarray(unpooled(tokens), np.int32)
        seen = None
        if expand is not None:
            tokens, seen = expand(tokens)
        ids = Ragged.from_rows(tokens, np.int32)
        seen = ids.counts if seen is None else np.asarray(seen, np.int32)
        return cls(place, ids, seen, counts)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens attended to; 1 where the row is -1 (an empty slot still has a first token)."""
        return np.where(rows >= 0, self.seen[self.place[rows]], 1).astype(np.int32)

    def unpooled_counts(self, rows: np.ndarray) -> np.ndarray:
        """Tokens at the beginning that are not pooled; 0 where the row is -1."""
        return np.where(rows >= 0, self.unpooled[self.place[rows]], 0).astype(np.int32)

    def spans(self, rows: np.ndarray) -> np.ndarray:
        """Tokens that get a vector; 1 where the row is -1."""
        return np.where(rows >= 0, self.ids.counts[self.place[rows]], 1).astype(np.int32)

    def matrix(self, rows: np.ndarray, width: int, pad_id: int) -> np.ndarray:
        """int32 [len(rows), width], right-padded; all padding where the row is -1."""
        out = np.full((len(rows), width), pad_id, np.int32)
        real = rows >= 0
        out[real] = self.ids.take(self.place[rows[real]]).padded(pad_id, width)
        return out


class Picked(NamedTuple):
    """The texts of some rows of a batch.

    Attributes:
        numbers: int64 [b], rows of the table of negatives.
        passages: int32 [b, G], corpus rows: positives, hard negatives, and what is for distillation
            alone; -1: an empty slot.
        scores: float32 [b, G], the teacher's, -inf where there is none; None: not requested.
        weights: float32 [b, G], how much each counts; None: not requested.
        distilled: bool [b, G], which are for distillation alone; None: none.
    """

    numbers: np.ndarray
    passages: np.ndarray
    scores: np.ndarray | None
    weights: np.ndarray | None = None
    distilled: np.ndarray | None = None

    def __getitem__(self, rows: slice | np.ndarray) -> Picked:
        """Some of the rows."""
        return Picked(*(None if part is None else part[rows] for part in tuple(self)))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Everything that a training batch is made from.

    Attributes:
        negatives: the mined table.
        queries, passages: tokens of every text the table names.
        texts: their keys.
        names: ids of passages in batches, and those that are not negatives of each row.
        batch_size: queries per global batch.
        num_negatives: hard negatives per query and batch.
        draw: which of the mined ones, step by step.
        pad_id: the tokenizer's padding token.
        seed: of order and choice.
        num_positives: positives per query in a batch; a row with more draws from them.
        teacher_scores: whether batches hold the table's scores, for distillation.
        weights: whether they hold the table's weights: of positives, and 1 - risk of negatives.
        num_distilled: candidates per query and batch that are for distillation alone.
        guide: float32 [Q, Dg] and [N, Dg], a guide model's vectors of the data set's queries and
            passages, row by row, or None.
        skiplist: by side the token ids whose vectors do not count, for multi-vector models.
        clusters: of similar rows, from which batches are filled, or None.
    """

    negatives: Negatives
    queries: Tokens
    passages: Tokens
    texts: SetTexts
    names: Names
    batch_size: int
    num_negatives: int
    pad_id: int
    seed: int
    num_positives: int = 1
    teacher_scores: bool = False
    guide: tuple[np.ndarray, np.ndarray] | None = None
    skiplist: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    draw: Draw = dataclasses.field(default_factory=Draw)
    weights: bool = False
    num_distilled: int = 0
    clusters: Clusters | None = None

    @classmethod
    def build(
        cls,
        negatives: Negatives,
        query_texts: Sequence[str],
        passage_texts: Sequence[str],
        tokenize_query: Tokenize,
        tokenize_passage: Tokenize,
        *,
        batch_size: int,
        num_negatives: int,
        pad_id: int,
        seed: int,
        num_positives: int = 1,
        teacher_scores: bool = False,
        guide: tuple[np.ndarray, np.ndarray] | None = None,
        unpooled: Mapping[str, Unpooled] | None = None,
        skiplist: Mapping[str, Sequence[int]] | None = None,
        expand_query: Expand | None = None,
        draw: Draw | None = None,
        weights: bool = False,
        num_distilled: int = 0,
        clusters: Clusters | None = None,
    ) -> Examples:
        """Tokenises the texts that the table names.

        Args:
            unpooled: by side ('query', 'passage') how many tokens at the beginning of its texts are
                not pooled, fewer than each text has: an empty mean has no gradient.
            others: see the attributes.

        Raises:
            InputError: the table is empty; scores are requested, or drawn by, but come from several
                teachers; it has no candidates for distillation alone; the guide's vectors belong to
                another data set.
        """
        if not len(negatives):
            raise InputError("training: the table of negatives has no rows")
        draw = draw or Draw()
        if teacher_scores and negatives.positive_targets is None:
            _check_scores(negatives, "distillation")
        if draw.how not in ("top", "uniform"):
            _check_scores(negatives, f"draw.how={draw.how!r}")
        if guide is not None:
            _check_guide(guide, len(query_texts), len(passage_texts))
        unpooled = unpooled or {}
        used = [negatives.positive_rows.values]
        if num_negatives:
            pool = drawing.pool_of(draw, num_negatives, negatives.negative_rows)
            used.append(negatives.negative_rows.head(pool).values)
        if num_distilled:
            if negatives.distilled_rows is None:
                raise InputError(
                    "training: the table of negatives has no candidates for distillation alone; "
                    "mine with num_distilled"
                )
            used.append(negatives.distilled_rows.head(num_distilled).values)
        used = np.concatenate(used)
        texts = SetTexts.of(
            query_texts, passage_texts, negatives.query_rows, negatives.judged_rows, used
        )
        return cls(
            negatives,
            Tokens.of(
                query_texts,
                negatives.query_rows,
                tokenize_query,
                expand_query,
                unpooled.get("query"),
            ),
            Tokens.of(
                passage_texts,
                used,
                tokenize_passage,
                unpooled=unpooled.get("passage"),
            ),
            texts,
            *name_passages([texts], [0]),
            batch_size,
            num_negatives,
            pad_id,
            seed,
            num_positives,
            teacher_scores,
            guide,
            skiplist or {},
            draw,
            weights,
            num_distilled,
            clusters,
        )

    @property
    def max_positives(self) -> int:
        """The largest number of passages that a query cannot have as negatives."""
        return int(self.names.known.counts.max())

    def held_positives(self) -> np.ndarray:
        """Ids of all positives that batches hold, ascending."""
        return np.unique(self.names.of_row[self.negatives.positive_rows.values])

    def has_negatives(self, others: np.ndarray) -> np.ndarray:
        """Whether a row has a hard negative, or a negative among some other passages; bool [R].

        Args:
            others: ids of passages that other rows bring to a batch, ascending.
        """
        known = self.names.known
        hard = self._pool(self.negatives.negative_rows)
        new = ~known.contains(hard.row_of, self.names.of_row[hard.values])
        out = np.bincount(hard.row_of[new], minlength=len(known)) > 0
        seen = np.bincount(known.row_of[np.isin(known.values, others)], minlength=len(known))
        return out | (seen < len(others))

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The queries of a step, and the passages of each.

        Returns:
            query numbers int64 [B] (rows of the table of negatives) and passage rows
            int32 [B, G]: num_positives positives, drawn again in each step if there are more; the
            num_negatives hard negatives that `draw` takes; the best num_distilled candidates for
            distillation alone; -1 where the table has fewer.
        """
        numbers = self._numbers(step)
        kept = self.negatives.positive_rows.take(numbers)
        positives = self._drawn(step, kept.counts, kept.padded(-1))
        hard = self._taken(step, numbers, self.negatives.negative_rows, -1)
        more = self._distilled(numbers, self.negatives.distilled_rows, -1)
        return numbers, np.concatenate([positives, hard, *more], axis=1).astype(np.int32)

    def scores(self, step: int) -> np.ndarray:
        """What distillation fits for `rows`: the table's targets, or the teacher's scores.

        float32; -inf where there is no passage or no score.
        """
        numbers, table = self._numbers(step), self.negatives
        of = table.positive_scores, table.negative_scores, table.distilled_scores
        if table.positive_targets is not None:
            of = table.positive_targets, table.negative_targets, table.distilled_targets
        kept = of[0].take(numbers)
        positives = self._drawn(step, kept.counts, kept.padded(-np.inf))
        hard = self._taken(step, numbers, of[1], -np.inf)
        more = self._distilled(numbers, of[2], -np.inf)
        scores = np.concatenate([positives, hard, *more], axis=1).astype(np.float32)
        return np.where(np.isfinite(scores), scores, np.float32(-np.inf))

    def slot_weights(self, step: int) -> np.ndarray:
        """How much the passages of `rows` count, float32; 1 where the table does not say."""
        numbers, table = self._numbers(step), self.negatives
        positives = np.ones((len(numbers), self.num_positives), np.float32)
        if table.positive_weights is not None:
            kept = table.positive_weights.take(numbers)
            positives = self._drawn(step, kept.counts, kept.padded(-np.inf))
        risks = np.zeros((len(numbers), self.num_negatives), np.float32)
        if table.negative_risks is not None:
            risks = self._taken(step, numbers, table.negative_risks, 0.0)
        more = np.ones((len(numbers), self.num_distilled), np.float32)
        weights = np.concatenate([positives, 1.0 - np.nan_to_num(risks), more], axis=1)
        return np.where(np.isfinite(weights), weights, 1.0).astype(np.float32)

    def _pool(self, ragged: Ragged) -> Ragged:
        """Of each row what a batch may take."""
        most = drawing.pool_of(self.draw, self.num_negatives, self.negatives.negative_rows)
        return ragged.head(most)

    def _taken(self, step: int, numbers: np.ndarray, values: Ragged, nothing: float) -> np.ndarray:
        """What a step takes of a column of negatives, [B, num_negatives]."""
        if self.draw.how == "top" or not self.num_negatives:
            return values.take(numbers).padded(nothing, self.num_negatives)
        table = self.negatives
        places = drawing.drawn_places(
            self.draw,
            self.num_negatives,
            seed=self.seed,
            step=step,
            query_rows=table.query_rows[numbers],
            passages=self._pool(table.negative_rows.take(numbers)),
            scores=self._pool(table.negative_scores.take(numbers)),
            positives=table.positive_scores.take(numbers).reduce(np.minimum, np.nan),
        )
        pool = self._pool(values.take(numbers))
        wide = pool.padded(nothing, max(1, int(pool.counts.max(initial=0))))
        return np.where(places >= 0, np.take_along_axis(wide, np.maximum(places, 0), 1), nothing)

    def _distilled(
        self, numbers: np.ndarray, values: Ragged | None, nothing: float
    ) -> list[np.ndarray]:
        """A column of what is for distillation alone, [B, num_distilled], in a list; else []."""
        if not self.num_distilled:
            return []
        return [values.take(numbers).padded(nothing, self.num_distilled)]

    def _numbers(self, step: int) -> np.ndarray:
        places = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs, rows = np.divmod(places, len(self.negatives))
        numbers = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = self._order(epoch)[rows[here]]
        return numbers

    @functools.cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """Epoch -> all row numbers in its order; a batch spans two epochs, rarely more."""
        if self.clusters is not None:
            return lambda epoch: self.clusters.order(self.seed, epoch, self.batch_size)

        @functools.lru_cache(maxsize=3)
        def order(epoch: int) -> np.ndarray:
            # The raw stream of a bit generator is the same in every version of NumPy. The third
            # word separates it from other draws with (seed, number).
            stream = np.random.PCG64([self.seed, epoch, _ORDER])
            return np.argsort(stream.random_raw(len(self.negatives)), kind="stable")

        return order

    def _drawn(self, step: int, counts: np.ndarray, values: np.ndarray) -> np.ndarray:
        """`num_positives` of each row's first `counts` values, without repetition."""
        random = np.random.default_rng([self.seed, step])
        if self.num_positives == 1:
            draw = random.random(self.batch_size)
            pick = np.minimum((draw * counts).astype(np.int64), counts - 1)[:, None]
            return np.take_along_axis(values, pick, axis=1)
        width = max(values.shape[1], self.num_positives)
        fill = np.full((len(values), width - values.shape[1]), _NOTHING[values.dtype.kind])
        values = np.concatenate([values, fill.astype(values.dtype)], axis=1)
        draw = random.random((self.batch_size, width))
        draw[np.arange(width)[None, :] >= counts[:, None]] = np.inf
        pick = np.argsort(draw, axis=1, kind="stable")[:, : self.num_positives]
        return np.take_along_axis(values, pick, axis=1)

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Rows start..stop of the global batch of one step, in the global batch's shapes.

        Returns:
            query_tokens [b, Tq], query_lengths [b], passage_tokens [b·G, Tp],
            passage_lengths [b·G], passage_ids [b·G] (equal where texts are, -1: empty slot) and
            positive_ids [b, J] (passages known not to be negatives, padded with -1; see
            text_ids.py); all int32. If requested, also teacher_scores float32 [b, G] (-inf: none),
            passage_weights float32 [b, G], passage_distilled bool [b·G], query_guide [b, Dg] and
            passage_guide [b·G, Dg] float32 (0 in empty slots), query_unpooled and passage_unpooled
            int32, query_real [b, Tq] and passage_real [b·G, Tp] bool.
        """
        picked = self.pick(step)
        return self.fill(picked[start:stop], self.widths(picked), self.max_positives)

    def pick(self, step: int) -> Picked:
        """The texts of the global batch of a step."""
        numbers, passages = self.rows(step)
        return Picked(
            numbers,
            passages,
            self.scores(step) if self.teacher_scores else None,
            self.slot_weights(step) if self.weights else None,
            self._is_distilled(passages.shape) if self.num_distilled else None,
        )

    def _is_distilled(self, shape: tuple[int, int]) -> np.ndarray:
        first = self.num_positives + self.num_negatives
        return np.broadcast_to(np.arange(shape[1]) >= first, shape)

    def lengths(self, step: int) -> dict[str, np.ndarray]:
        """Tokens of each 'query' [B] and 'passage' [B·G] of the global batch of a step, int32."""
        return self.lengths_of(self.pick(step))

    def lengths_of(self, picked: Picked) -> dict[str, np.ndarray]:
        """Tokens of each 'query' [b] and 'passage' [b·G] of some rows, int32.

        Those that get a vector: an expanded query has more than are attended to.
        """
        return {
            "query": self.queries.spans(self.negatives.query_rows[picked.numbers]),
            "passage": self.passages.spans(picked.passages.ravel()),
        }

    @property
    def longest(self) -> dict[str, int]:
        """By side, the largest number of tokens of a text that get vectors."""
        sides = {"query": self.queries, "passage": self.passages}
        return {side: int(tokens.ids.counts.max()) for side, tokens in sides.items()}

    def widths(self, picked: Picked) -> tuple[int, int]:
        """The widths in tokens to which queries and passages of these rows are padded."""
        query_rows = self.negatives.query_rows[picked.numbers]
        query_spans = self.queries.spans(query_rows)
        passage_spans = self.passages.spans(picked.passages.ravel())
        return padded_width(int(query_spans.max())), padded_width(int(passage_spans.max()))

    def fill(
        self, picked: Picked, widths: tuple[int, int], max_positives: int
    ) -> dict[str, np.ndarray]:
        """The arrays of some rows, as `batch` describes them; `batch_shapes` are their shapes.

        Args:
            picked: the rows.
            widths: tokens of a query and of a passage, at least those of `widths(picked)`.
            max_positives: J, the number of known passages per row.
        """
        query_rows = self.negatives.query_rows[picked.numbers]
        passages = picked.passages.ravel()
        batch = {
            "query_tokens": self.queries.matrix(query_rows, widths[0], self.pad_id),
            "query_lengths": self.queries.lengths(query_rows),
            "passage_tokens": self.passages.matrix(passages, widths[1], self.pad_id),
            "passage_lengths": self.passages.lengths(passages),
            "passage_ids": np.where(passages >= 0, self.names.of_row[passages], -1),
            "positive_ids": self.names.known.take(picked.numbers).padded(-1, max_positives),
        }
        if picked.scores is not None:
            batch["teacher_scores"] = picked.scores
        if picked.weights is not None:
            batch["passage_weights"] = picked.weights
        if picked.distilled is not None:
            batch["passage_distilled"] = picked.distilled.ravel()
        if self.guide is not None:
            queries_qd, passages_nd = self.guide
            batch["query_guide"] = queries_qd[query_rows].astype(np.float32)
            found = passages_nd[np.maximum(passages, 0)].astype(np.float32)
            batch["passage_guide"] = np.where(passages[:, None] >= 0, found, np.float32(0))
        sides = {"query": (self.queries, query_rows), "passage": (self.passages, passages)}
        for side, (texts, rows) in sides.items():
            if texts.unpooled is not None:
                batch[f"{side}_unpooled"] = texts.unpooled_counts(rows)
        spans = {"query": self.queries.spans(query_rows), "passage": self.passages.spans(passages)}
        for side, ids in self.skiplist.items():
            tokens = batch[f"{side}_tokens"]
            real = np.arange(tokens.shape[1])[None, :] < spans[side][:, None]
            batch[f"{side}_real"] = real & ~np.isin(tokens, list(ids))
        return batch


def _check_scores(negatives: Negatives, what: str) -> None:
    """Scores of several teachers have no common scale, and a row mixes them."""
    names = [name for name in negatives.teachers if name not in (RANDOM, GIVEN)]
    if len(names) > 1:
        raise InputError(
            f"{what} needs the scores of a single teacher, but the table of negatives has those of "
            f"{len(names)} ({', '.join(names)}); mine with one, or let one cross-encoder rescore "
            "all" + ("; or average them, mining.targets" if what == "distillation" else "")
        )


def _check_guide(guide: tuple[np.ndarray, np.ndarray], queries: int, passages: int) -> None:
    for what, vectors, wanted in zip(
        ("queries", "passages"), guide, (queries, passages), strict=True
    ):
        if len(vectors) != wanted:
            raise InputError(
                f"the guide has vectors of {len(vectors)} {what}, the data set has {wanted}; "
                "embed this data set with it"
            )


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The range of a global batch that this process's devices hold."""
    sharding = mesh_lib.sharding(mesh, "batch")
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    starts = [s[0].start or 0 for s in slices]
    stops = [batch_size if s[0].stop is None else s[0].stop for s in slices]
    return min(starts), max(stops)


def to_devices(
    batch: dict[str, np.ndarray], mesh: Mesh, start: int, batch_size: int
) -> dict[str, jax.Array]:
    """A process's part of a batch as global arrays, split over the mesh's batch axis.

    Entries that are not arrays (`Groups`) are unchanged.
    """
    rows = len(batch["query_lengths"])
    out = {}
    for name, local in batch.items():
        if isinstance(local, Groups):
            out[name] = local
            continue
        per_row = len(local) // rows
        shape = (batch_size * per_row, *local.shape[1:])
        sharding = mesh_lib.sharding(mesh, "batch", *([None] * (local.ndim - 1)))
        offset = start * per_row

        def piece(index, local=local, offset=offset):
            first, last, _ = index[0].indices(batch_size * (len(local) // rows))
            return local[first - offset : last - offset]

        out[name] = jax.make_array_from_callback(shape, sharding, piece)
    return out

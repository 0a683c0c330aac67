"""Training batches, each a pure function of (seed, step).

Texts are tokenised once, before the first step: every process then knows the length of every text,
so all agree on the shape of a batch without talking, and a step costs no tokenising. Which rows
make up step i follows from the seed alone (Grain's index shuffle); a process builds only the rows
that its devices hold. A resumed run therefore continues with exactly the batches it would have had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives

Tokenize = Callable[[Sequence[str]], list[np.ndarray]]
_BUCKET = 16  # batch lengths are rounded up to a multiple of this


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of some of a table's texts.

    Attributes:
        place: int32, for each row of the table its row in `ids`; -1: not held.
        ids: int32, one row per text held.
    """

    place: np.ndarray
    ids: Ragged

    @classmethod
    def of(cls, texts: Sequence[str], rows: np.ndarray, tokenize: Tokenize) -> Tokens:
        """Tokenises `texts[r]` for the distinct rows named."""
        rows = np.unique(rows)
        rows = rows[rows >= 0]
        place = np.full(len(texts), -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        return cls(place, Ragged.from_rows(tokenize([texts[r] for r in rows]), np.int32))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each text; 1 where the row is -1 (an empty slot still has a first token)."""
        return np.where(rows >= 0, self.ids.counts[self.place[rows]], 1).astype(np.int32)

    def matrix(self, rows: np.ndarray, width: int, pad_id: int) -> np.ndarray:
        """int32 [len(rows), width], right-padded; all padding where the row is -1."""
        out = np.full((len(rows), width), pad_id, np.int32)
        real = rows >= 0
        out[real] = self.ids.take(self.place[rows[real]]).padded(pad_id, width)
        return out


@dataclasses.dataclass(frozen=True)
class Examples:
    """All that a training batch is made from.

    Attributes:
        negatives: the mined table.
        queries, passages: tokens of every text the table names.
        batch_size: queries per global batch.
        num_negatives: hard negatives per query; the best mined ones.
        pad_id: the tokenizer's padding token.
        seed: of order and choice.
    """

    negatives: Negatives
    queries: Tokens
    passages: Tokens
    batch_size: int
    num_negatives: int
    pad_id: int
    seed: int

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
    ) -> Examples:
        """Tokenises what the table names.

        Raises:
            InputError: the table is empty.
        """
        if not len(negatives):
            raise InputError("training: the table of negatives has no rows")
        used = [negatives.positive_rows.values]
        if num_negatives:
            used.append(negatives.negative_rows.padded(-1, num_negatives).ravel())
        return cls(
            negatives,
            Tokens.of(query_texts, negatives.query_rows, tokenize_query),
            Tokens.of(passage_texts, np.concatenate(used), tokenize_passage),
            batch_size,
            num_negatives,
            pad_id,
            seed,
        )

    @property
    def max_positives(self) -> int:
        return int(self.negatives.judged_rows.counts.max())

    def steps_per_epoch(self) -> float:
        return len(self.negatives) / self.batch_size

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Which queries make up a step, and which passages stand beside each.

        Returns:
            query numbers int64 [B] (rows of the table of negatives) and passage rows
            int32 [B, 1 + num_negatives]: a positive, drawn anew each time where there are several,
            then the hard negatives; -1 where the table has fewer.
        """
        order = grain.MapDataset.range(len(self.negatives)).seed(self.seed).shuffle().repeat()
        first = step * self.batch_size
        numbers = np.array([order[first + j] for j in range(self.batch_size)], np.int64)
        chosen = self.negatives.positive_rows.take(numbers)
        draw = np.random.default_rng([self.seed, step]).random(self.batch_size)
        pick = np.minimum((draw * chosen.counts).astype(np.int64), chosen.counts - 1)
        positives = chosen.values[chosen.offsets[:-1] + pick]
        hard = self.negatives.negative_rows.take(numbers).padded(-1, self.num_negatives)
        return numbers, np.concatenate([positives[:, None], hard], axis=1).astype(np.int32)

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Rows start..stop of the global batch of one step, in the global batch's shapes.

        Returns:
            query_tokens [b, Tq], query_lengths [b], passage_tokens [b·G, Tp],
            passage_lengths [b·G], passage_ids [b·G] (corpus rows, -1: empty slot) and
            positive_ids [b, P] (all judged positives, padded with -1); all int32.
        """
        stop = self.batch_size if stop is None else stop
        numbers, passages = self.rows(step)
        query_rows = self.negatives.query_rows[numbers]
        query_width = self._width(self.queries.lengths(query_rows))
        passage_width = self._width(self.passages.lengths(passages.ravel()))
        numbers, passages = numbers[start:stop], passages[start:stop].ravel()
        query_rows = query_rows[start:stop]
        positives = self.negatives.judged_rows.take(numbers).padded(-1, self.max_positives)
        return {
            "query_tokens": self.queries.matrix(query_rows, query_width, self.pad_id),
            "query_lengths": self.queries.lengths(query_rows),
            "passage_tokens": self.passages.matrix(passages, passage_width, self.pad_id),
            "passage_lengths": self.passages.lengths(passages),
            "passage_ids": passages,
            "positive_ids": positives.astype(np.int32),
        }

    def dataset(self, steps: int, start: int, stop: int) -> grain.IterDataset:
        """Batches 0..steps in order, with prefetch and a state that checkpoints can hold."""

        def make(step: int) -> dict[str, np.ndarray]:
            return self.batch(int(step), start, stop)

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return grain.MapDataset.range(steps).map(make).to_iter_dataset(options)

    @staticmethod
    def _width(lengths: np.ndarray) -> int:
        return -(-int(lengths.max()) // _BUCKET) * _BUCKET


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The stretch of a global batch that this process's devices hold."""
    sharding = mesh_lib.sharding(mesh, "batch")
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    starts = [s[0].start or 0 for s in slices]
    stops = [batch_size if s[0].stop is None else s[0].stop for s in slices]
    return min(starts), max(stops)


def to_devices(
    batch: dict[str, np.ndarray], mesh: Mesh, start: int, batch_size: int
) -> dict[str, jax.Array]:
    """A process's part of a batch as global arrays, split over the mesh's batch axis."""
    rows = len(batch["query_lengths"])
    out = {}
    for name, local in batch.items():
        per_row = len(local) // rows
        shape = (batch_size * per_row, *local.shape[1:])
        sharding = mesh_lib.sharding(mesh, "batch", *([None] * (local.ndim - 1)))
        offset = start * per_row

        def piece(index, local=local, offset=offset):
            first, last, _ = index[0].indices(batch_size * (len(local) // rows))
            return local[first - offset : last - offset]

        out[name] = jax.make_array_from_callback(shape, sharding, piece)
    return out

"""A stage's batches from several data sets: the order of rows, and how sets share a batch.

A *source* is one data set, tokenised with its own prompts and lengths. A *unit* is what a source
gets at a time (mixing_order.py): a whole batch if batches are homogeneous, a row if they are mixed.
Choices:

- The j-th row of a source is the j-th row of its own endless shuffled order, with the positives it
  would have drawn there, whatever else is in the batch.
- A homogeneous batch has the shapes of its source, so that a set with one negative is not padded
  for a set with ten; the step is compiled once per shape. A mixed batch fits the most negatives and
  judged positives of any source, and the longest text of the global batch, so that all processes
  agree without communication.
- Passage ids of one corpus are shifted by the sizes of the corpora before it. Sets with the same
  corpus share ids, and so do equal texts of different corpora (text_ids.py): the masks against
  false negatives thus cover the positives of all sets.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import grain
import numpy as np

from nvret_jax.errors import InputError
from nvret_jax.training.batches.examples import Examples, Picked, Tokens
from nvret_jax.training.batches.mixing_order import MixingOrder, largest_remainder
from nvret_jax.training.batches.text_ids import name_passages
from nvret_jax.training.stage import prefetched

Unit = Literal["epochs", "weight"]
Batches = Literal["homogeneous", "mixed"]
Batch = dict[str, np.ndarray]

_MAX_IDS = 2**31  # passage ids are int32
_TOLERANCE = 1e-6  # of the sum of weights


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name: of the set, for messages and counts.
        examples: tokenised with the set's prompts and lengths.
        share: unit 'weight': its part of all examples; unit 'epochs': its passes per epoch of the
            stage.
        corpus: sources with the same non-empty value have the same corpus, the same table of
            queries and the same passage ids.
    """

    name: str
    examples: Examples
    share: float
    corpus: str = ""

    def __len__(self) -> int:
        return len(self.examples.negatives)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The batches of one stage. See `build`.

    Attributes:
        sources: unified to the same keys and ids: one that pools all tokens skips 0 if another
            skips some.
        offsets: added to each source's corpus rows to make ids.
        batch_size: queries per global batch.
        num_negatives: hard negatives per row of a mixed batch.
        seed: of the order of units.
        steps: of the stage.
        batches: 'homogeneous' or 'mixed'.
        order: the order of units.
    """

    sources: tuple[Source, ...]
    offsets: tuple[int, ...]
    batch_size: int
    num_negatives: int
    seed: int
    steps: int
    batches: Batches
    order: MixingOrder

    @classmethod
    def build(
        cls,
        sources: Sequence[Source],
        *,
        batch_size: int,
        num_negatives: int = 0,
        seed: int,
        unit: Unit = "epochs",
        batches: Batches = "homogeneous",
        epochs: float = 1.0,
        steps: int = 0,
        min_steps: int = 0,
        max_steps: int = 0,
    ) -> Mixture:
        """Plans a stage.

        Args:
            sources: the data sets.
            batch_size: queries per global batch, the same as that of all sources.
            num_negatives: hard negatives per row of a mixed batch, at least; a source may need
                more. A homogeneous batch has as many as its source's `Examples.num_negatives`.
            seed: of the order of units; that of rows within a source is in its examples.
            unit: unit of the shares. 'epochs': a source has `epochs · share` passes; homogeneous
                batches round each source up to whole batches, mixed ones the sum. 'weight': a
                source is `share` of ceil(epochs · all rows / batch_size) steps.
            batches: whether all rows of a batch are of one source.
            epochs: length of the stage; used only if `steps` is 0.
            steps: length of the stage; the proportions are kept.
            min_steps: least length if `steps` is 0; 0: no bound. The proportions are kept.
            max_steps: largest length if `steps` is 0; 0: no bound. The proportions are kept.

        Raises:
            InputError: sources that cannot be combined; names one of them.
        """
        sources = tuple(sources)
        _check_names(sources)
        _check_shares(sources, unit)
        _check_same(sources, batch_size)
        _check_extras(sources, batches)
        if not steps > 0 and not 0 < epochs < math.inf:
            raise InputError(
                f"mixture: epochs={epochs} without steps; set epochs or steps to a positive number"
            )
        size = 1 if batches == "homogeneous" else batch_size
        counts = _counts(sources, unit, batch_size // size, size, epochs, steps)
        length = max(sum(counts) // size, min_steps)
        length = min(length, max_steps or length)
        if not steps and length != sum(counts) // size:
            counts = _counts(sources, unit, batch_size // size, size, epochs, length)
        offsets = _offsets(sources)
        return cls(
            _with_same_keys(sources, offsets),
            offsets,
            batch_size,
            max(num_negatives, *(source.examples.num_negatives for source in sources)),
            seed,
            sum(counts) // size,
            batches,
            MixingOrder(tuple(counts), seed),
        )

    def counts(self) -> dict[str, int]:
        """Examples (queries) of each source over the whole stage."""
        size = self.batch_size if self.batches == "homogeneous" else 1
        named = zip(self.sources, self.order.counts, strict=True)
        return {source.name: count * size for source, count in named}

    def without_negatives(self, in_batch: bool) -> tuple[int, int]:
        """How many rows have no negative in any batch, and how many rows there are.

        Args:
            in_batch: whether passages of other rows are negatives.
        """
        shared = self.batches == "mixed"
        others = [source.examples.held_positives() for source in self.sources]
        alone = rows = 0
        for source, held in zip(self.sources, others, strict=True):
            seen = np.unique(np.concatenate(others)) if shared else held
            has = source.examples.has_negatives(seen if in_batch else seen[:0])
            alone, rows = alone + int((~has).sum()), rows + len(has)
        return alone, rows

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Rows start..stop of the global batch of one step, counted from 0.

        Returns:
            As `Examples.batch`, in the global batch's shapes. Passage ids are those of all corpora
            of the mixture.

        Raises:
            IndexError: the stage has no such step.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a stage of {self.steps} steps")
        stop = self.batch_size if stop is None else stop
        if self.batches == "mixed":
            return self._mixed(step, start, stop)
        (source,), (unit,) = self.order.stretch(step, step + 1)
        return self.sources[source].examples.batch(int(unit), start, stop)

    def lengths(self, step: int) -> dict[str, np.ndarray]:
        """Tokens of each 'query' and 'passage' of the global batch of one step."""
        if self.batches == "homogeneous":
            (source,), (unit,) = self.order.stretch(step, step + 1)
            return self.sources[source].examples.lengths(int(unit))
        here, picked = self._shared(step)
        out: Batch = {}
        for source, rows in here.items():
            part = self.sources[source].examples.lengths_of(picked[source])
            _scatter(out, part, rows, self.batch_size)
        return out

    def dataset(self, first: int, start: int, stop: int) -> grain.IterDataset:
        """Batches first..steps in order, with prefetch and a state that checkpoints can hold."""
        return prefetched(lambda step: self.batch(step, start, stop), first, self.steps)

    @functools.cached_property
    def longest(self) -> dict[str, int]:
        """By side, tokens of the longest text of any source."""
        found = [source.examples.longest for source in self.sources]
        return {side: max(lengths[side] for lengths in found) for side in found[0]}

    def _shared(self, step: int) -> tuple[dict[int, np.ndarray], dict[int, Picked]]:
        """For each source in a mixed batch: its rows of the batch, and their content."""
        first = step * self.batch_size
        of_row, units = self.order.stretch(first, first + self.batch_size)
        here = {int(source): np.flatnonzero(of_row == source) for source in np.unique(of_row)}
        return here, {source: self._pick(source, units[rows]) for source, rows in here.items()}

    def _mixed(self, step: int, start: int, stop: int) -> Batch:
        here, picked = self._shared(step)
        widths = [self.sources[s].examples.widths(rows) for s, rows in picked.items()]
        query_width, passage_width = np.max(widths, axis=0).tolist()

        out: Batch = {}
        for source, rows in here.items():
            mine = (rows >= start) & (rows < stop)
            if not mine.any():
                continue
            part = self.sources[source].examples.fill(
                picked[source][mine], (query_width, passage_width), self._max_positives
            )
            _scatter(out, part, rows[mine] - start, stop - start)
        return out

    def _pick(self, source: int, units: np.ndarray) -> Picked:
        """The rows at these positions of a source's own order, with `num_negatives` slots."""
        steps, places = np.divmod(units, self.batch_size)
        whole = [
            self._pickers[source](int(step))[places[steps == step]] for step in np.unique(steps)
        ]
        numbers, *columns = zip(*whole, strict=True)
        more = self.num_negatives - self.sources[source].examples.num_negatives
        padded = [
            None
            if parts[0] is None
            else np.pad(np.concatenate(parts), ((0, 0), (0, more)), constant_values=nothing)
            for parts, nothing in zip(columns, (-1, -np.inf, 1, False), strict=True)
        ]
        return Picked(np.concatenate(numbers), *padded)

    @functools.cached_property
    def _pickers(self) -> list:
        # Rows of a source are requested in its order, so each of its own batches is drawn once.
        return [functools.lru_cache(maxsize=2)(source.examples.pick) for source in self.sources]

    @functools.cached_property
    def _max_positives(self) -> int:
        return max(source.examples.max_positives for source in self.sources)


def _scatter(out: Batch, part: Batch, rows: np.ndarray, size: int) -> None:
    """Copies a part's arrays into rows of `out`, whose arrays are created if missing."""
    for name, values in part.items():
        per_row, rest = len(values) // len(rows), values.shape[1:]
        if name not in out:
            out[name] = np.empty((size * per_row, *rest), values.dtype)
        out[name].reshape(size, per_row, *rest)[rows] = values.reshape(len(rows), per_row, *rest)


def _counts(
    sources: Sequence[Source], unit: Unit, rows: int, size: int, epochs: float, steps: int
) -> list[int]:
    """Units of each source.

    Args:
        sources, unit, epochs, steps: as in `Mixture.build`.
        rows: rows of a unit.
        size: units of a batch.
    """
    # Shares as decimals: 0.1 is exactly a tenth, otherwise 10 times 0.1 could be rounded up to 2.
    shares = [_exact(source.share) for source in sources]
    if unit == "epochs":
        wanted = [
            share * len(source) * _exact(epochs) / rows
            for share, source in zip(shares, sources, strict=True)
        ]
        if not steps and size == 1:
            return [math.ceil(part) for part in wanted]
        steps = steps or math.ceil(sum(wanted) / size)
        return largest_remainder(steps * size, wanted)
    total = sum(len(source) for source in sources) * _exact(epochs)
    steps = steps or math.ceil(total / (rows * size))
    return largest_remainder(steps * size, shares)


def _exact(value: float) -> Fraction:
    return Fraction(str(float(value)))


def _with_same_keys(sources: tuple[Source, ...], offsets: tuple[int, ...]) -> tuple[Source, ...]:
    """Sources whose batches have the same entries, and equal ids for equal texts."""
    names = name_passages([source.examples.texts for source in sources], offsets)
    tables = ("queries", "passages")
    unpooled = [
        table
        for table in tables
        if any(getattr(source.examples, table).unpooled is not None for source in sources)
    ]
    skiplist = sorted({side for source in sources for side in source.examples.skiplist})
    out = []
    for source, named in zip(sources, names, strict=True):
        old = source.examples
        examples = dataclasses.replace(
            old,
            names=named,
            **{table: _pooled_whole(getattr(old, table)) for table in unpooled},
            skiplist={side: old.skiplist.get(side, ()) for side in skiplist},
        )
        out.append(dataclasses.replace(source, examples=examples))
    return tuple(out)


def _pooled_whole(tokens: Tokens) -> Tokens:
    """The same tokens, with zeros if no token is left out of the pooling."""
    if tokens.unpooled is not None:
        return tokens
    return dataclasses.replace(tokens, unpooled=np.zeros(len(tokens.ids), np.int32))


def _offsets(sources: Sequence[Source]) -> tuple[int, ...]:
    first: dict[str, tuple[Source, int]] = {}
    offsets, total = [], 0
    for number, source in enumerate(sources):
        size = len(source.examples.passages.place)
        key = f"corpus {source.corpus}" if source.corpus else f"source {number}"
        if key in first:
            other, offset = first[key]
            sizes = len(other.examples.passages.place), size
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"mixture: '{other.name}' and '{source.name}' are declared to have the same "
                    f"corpus, '{source.corpus}', but have {sizes[0]:,} and {sizes[1]:,} passages"
                )
            offsets.append(offset)
            continue
        first[key] = source, total
        offsets.append(total)
        total += size
        if total > _MAX_IDS:
            raise InputError(
                f"mixture: with '{source.name}' the corpora have {total:,} passages, more than the "
                f"{_MAX_IDS:,} ids of int32; leave a set out or take fewer passages"
            )
    return tuple(offsets)


def _check_names(sources: Sequence[Source]) -> None:
    if not sources:
        raise InputError("mixture: no sources; name at least one data set to train on")
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"mixture: two sources are named '{twice}'; rename one")


def _check_shares(sources: Sequence[Source], unit: Unit) -> None:
    what = {"weight": "weight", "epochs": "number of epochs"}[unit]
    for source in sources:
        if not 0 < source.share < math.inf:
            raise InputError(
                f"mixture: '{source.name}' has share {source.share}; expected a {what} above 0, or "
                "leave the set out"
            )
    total = math.fsum(source.share for source in sources)
    if unit == "weight" and abs(total - 1) > _TOLERANCE:
        shown = " + ".join(f"{source.share:g} ({source.name})" for source in sources)
        raise InputError(
            f"mixture: the weights sum to {total:.6g}, not to 1: {shown}; scale them, or count in "
            "epochs"
        )


def _check_same(sources: Sequence[Source], batch_size: int) -> None:
    """Checks what all rows of a stage must have in common."""
    first = sources[0]
    for source in sources:
        found = source.examples.batch_size
        if found != batch_size:
            raise InputError(
                f"mixture: '{source.name}' is built for batches of {found}, the stage has "
                f"{batch_size}"
            )
        for field in ("num_positives", "pad_id"):
            ours, theirs = getattr(first.examples, field), getattr(source.examples, field)
            if ours != theirs:
                raise InputError(
                    f"mixture: {field} is {ours} in '{first.name}' and {theirs} in "
                    f"'{source.name}', and must be equal in all sets"
                )


def _check_extras(sources: Sequence[Source], batches: Batches) -> None:
    """Checks teacher scores and guides: all sources or none."""
    scored = [source.examples.teacher_scores for source in sources]
    if any(scored) and not all(scored):
        name = sources[scored.index(False)].name
        raise InputError(
            f"mixture: distillation needs teacher scores for every set, but '{name}' has none; "
            "mine it with a teacher, or leave it out"
        )
    guided = [source.examples.guide is not None for source in sources]
    if not any(guided):
        return
    if not all(guided):
        name = sources[guided.index(False)].name
        raise InputError(
            f"mixture: the loss reads the guide's vectors, and '{name}' has none; mine it with a "
            "teacher that is an encoder, or leave it out"
        )
    widths = [source.examples.guide[1].shape[1] for source in sources]
    if batches == "mixed" and len(set(widths)) > 1:
        other = next(i for i, width in enumerate(widths) if width != widths[0])
        raise InputError(
            f"mixture: the guide of '{sources[0].name}' is {widths[0]} wide and that of "
            f"'{sources[other].name}' {widths[other]}, which one batch cannot hold; use batches "
            "'homogeneous', or one guide"
        )

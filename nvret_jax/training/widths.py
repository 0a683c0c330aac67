"""At which widths the texts of a batch are encoded.

A batch has short texts and long ones, and padded to its longest it is mostly padding: 3.7 times the
real tokens for the paragraphs of SQuAD, cut at 256. So a device sorts its texts by length and
encodes them in groups, each at a width of its own. Choices:

- **Shapes are planned, not found**: a step is compiled for a shape, and compiling takes longer than
  many steps. The r-th shortest of a hundred texts is about as long in every batch, so one plan,
  made from a sample of the stage's steps, has room for nearly all of them.
- A batch that the plan has no room for takes the next wider one, and at last a plan of one group at
  the width it needs. So no text is ever cut, and a stage has few shapes.
- Lengths are known without a batch being built (`lengths(step)`), and a plan has room for the
  texts of *every* device, so all processes take the same one without talking.
- Groups are few: one is made only where it saves 6 % of the tokens, as each is compiled by itself.

What is computed does not change, only what is padded: results are the same up to rounding. A plan
follows from data, seed and length of the stage, so a resumed run has the same ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from nvret_jax.training.stage import Batches

SIDES = ("query", "passage")
_BUCKET = 8  # widths are multiples of this
_SAMPLED_ROWS = 65_536  # queries looked at to make a plan, and
_SAMPLED_STEPS = (16, 256)  # the fewest and the most steps they are of
_WORTH = 0.06  # share of a batch's tokens that a further group must save


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Groups:
    """How a device encodes its texts: the shortest `rows[0]` at `widths[0]` tokens, and so on.

    Goes into a jitted function as part of its arguments' shapes, not as an array.
    """

    rows: tuple[int, ...]
    widths: tuple[int, ...]

    def hold(self, profile_r: np.ndarray) -> bool:
        """Whether texts of these lengths, sorted ascending, have room."""
        return bool((np.repeat(self.widths, self.rows) >= profile_r).all())


class Measured(Batches, Protocol):
    """Batches that know the lengths of their texts."""

    def lengths(self, step: int) -> Mapping[str, np.ndarray]:
        """'query' and 'passage': int [B], [N], tokens of each text of the global batch."""
        ...


def profile(lengths_n: np.ndarray, parts: int) -> np.ndarray:
    """How long the r-th shortest text of a device is, at most; int [N / parts].

    Args:
        lengths_n: of the global batch.
        parts: stretches of equal size, one a device.
    """
    return np.sort(lengths_n.reshape(parts, -1), axis=1).max(axis=0)


def group(profile_r: np.ndarray) -> Groups:
    """The groups with the fewest tokens for a profile, a group costing a share of them."""
    needed_r = _rounded(profile_r)
    widths, rows = np.unique(needed_r, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(rows)])
    price = _WORTH * float(needed_r.sum())
    # cost[j]: of all texts up to the j-th width; first[j]: where the last group of them begins.
    cost, first = [0.0], [0]
    for j in range(1, len(widths) + 1):
        costs = [cost[i] + float((ends[j] - ends[i]) * widths[j - 1]) + price for i in range(j)]
        cost.append(min(costs))
        first.append(int(np.argmin(costs)))
    cuts = [len(widths)]
    while cuts[-1]:
        cuts.append(first[cuts[-1]])
    cuts = cuts[::-1]
    pairs = list(itertools.pairwise(cuts))
    return Groups(
        tuple(int(ends[j] - ends[i]) for i, j in pairs), tuple(int(widths[j - 1]) for _, j in pairs)
    )


def plans(profiles_sr: np.ndarray) -> tuple[Groups, ...]:
    """Plans for batches like these: one that holds all of them, and a roomier one."""
    most_r = profiles_sr.max(axis=0)
    shift = max(1, len(most_r) // 16)
    roomy_r = np.concatenate([most_r[shift:], np.full(shift, most_r[-1])])
    return tuple(dict.fromkeys((group(most_r), group(roomy_r))))


def _rounded(lengths: Any) -> np.ndarray:
    return -(-np.asarray(lengths) // _BUCKET) * _BUCKET


@dataclasses.dataclass
class Grouped:
    """A stage's batches, with the groups that each is to be encoded in.

    A batch gets '{side}_groups' (`Groups`) for a side whose texts do not fit one chunk, and its
    tokens the width of the widest group.

    Attributes:
        batches: of the stage.
        parts: devices a batch is split over.
        chunk_tokens: tokens a device encodes at a time.
    """

    batches: Measured
    parts: int
    chunk_tokens: int

    def __post_init__(self):
        self.seed, self.steps = self.batches.seed, self.batches.steps
        self._plans: dict[tuple[str, int], tuple[Groups, ...]] | None = None

    def batch(self, step: int, start: int, stop: int) -> dict[str, Any]:
        """Rows start..stop of the global batch of one step, counted from 0."""
        return self._grouped(step, self.batches.batch(step, start, stop))

    def dataset(self, first: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The same for steps first..steps in order, prepared ahead."""
        for step, batch in enumerate(self.batches.dataset(first, start, stop), first):
            yield self._grouped(step, batch)

    def groups(self, step: int, batch: dict[str, Any] | None = None) -> dict[str, Groups]:
        """The groups of each side that has any.

        Args:
            step: counted from 0.
            batch: of this step, or a part of it; spares asking for lengths where it is all of it.
        """
        if self._plans is None:
            self._plans = self._made()
        if batch is not None and len(batch["query_lengths"]) == self._batch_size:
            lengths = {side: batch[f"{side}_lengths"] for side in SIDES}
        else:
            lengths = self.batches.lengths(step)
        out = {}
        for side, lengths_n in lengths.items():
            profile_r = profile(lengths_n, self.parts)
            known = self._plans.get((side, len(lengths_n)), ())
            last = Groups((len(profile_r),), (int(_rounded(profile_r[-1])),))
            if known:
                out[side] = next((plan for plan in known if plan.hold(profile_r)), last)
        return out

    def _grouped(self, step: int, batch: dict[str, Any]) -> dict[str, Any]:
        for side, groups in self.groups(step, batch).items():
            tokens, width = batch[f"{side}_tokens"], groups.widths[-1]
            fill = max(0, width - tokens.shape[1])  # what stands in padding is of no consequence
            batch[f"{side}_tokens"] = np.pad(tokens, ((0, 0), (0, fill)))[:, :width]
            batch[f"{side}_groups"] = groups
        return batch

    def _made(self) -> dict[tuple[str, int], tuple[Groups, ...]]:
        """Plans of each side, by how many texts a batch has: sources of a blend differ in it."""
        found: dict[tuple[str, int], list[np.ndarray]] = {}
        first = self.batches.lengths(0)
        least, most = _SAMPLED_STEPS
        self._batch_size = len(first["query"])
        wanted = min(max(_SAMPLED_ROWS // self._batch_size, least), most, self.steps)
        for step in np.unique(np.linspace(0, self.steps - 1, wanted).astype(int)).tolist():
            for side, lengths_n in self.batches.lengths(step).items():
                rows = found.setdefault((side, len(lengths_n)), [])
                rows.append(profile(lengths_n, self.parts))
        whole = {key: np.stack(rows) for key, rows in found.items()}
        return {
            key: plans(profiles_sr)
            for key, profiles_sr in whole.items()
            if profiles_sr.shape[1] * profiles_sr.max() > self.chunk_tokens
        }

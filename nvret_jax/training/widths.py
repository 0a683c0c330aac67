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
- A group is made where it saves more than it costs. Each is compiled by itself, so a long stage has
  more of them than a short one; and every chunk costs something beside its tokens. With many steps
  before it, a stage also gets a tighter plan, for the half of its batches that have fewer tokens.

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
_WORTH = 0.01  # share of a batch's tokens that a further group must save at least
# Tokens that a device could train on while it compiles a group: a small model's on a CPU, a large
# one's on an accelerator.
_COMPILE_TOKENS = {"cpu": 16_384}
_ACCELERATOR_COMPILE_TOKENS = 262_144
# What a chunk costs beside its tokens, as a share of a full one: 117 tokens of 1,024 for MiniLM on
# a CPU. Gradients of all weights are added up, and the products are small.
_CHUNK = 1 / 8
_CUTS = 1024  # places where a group may end


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


def group(profile_r: np.ndarray, chunk_tokens: int, price: float) -> Groups:
    """The groups that cost least.

    Args:
        profile_r: int, lengths in ascending order, which they have room for.
        chunk_tokens: tokens that are encoded at a time.
        price: of a further group, in tokens.
    """
    needed_r = _rounded(profile_r)
    count = len(needed_r)
    ends = np.unique(np.linspace(0, count, min(count, _CUTS) + 1).astype(int))
    # cost[j]: of all texts up to the j-th end; first[j]: where the last group of them begins.
    cost, first = np.zeros(len(ends)), np.zeros(len(ends), int)
    for j in range(1, len(ends)):
        costs = cost[:j] + _tokens(ends[j] - ends[:j], needed_r[ends[j] - 1], chunk_tokens) + price
        first[j] = np.argmin(costs)
        cost[j] = costs[first[j]]
    cuts = [len(ends) - 1]
    while cuts[-1]:
        cuts.append(int(first[cuts[-1]]))
    pairs = list(itertools.pairwise(ends[cuts[::-1]].tolist()))
    return Groups(tuple(j - i for i, j in pairs), tuple(int(needed_r[j - 1]) for _, j in pairs))


def _tokens(rows: Any, width: Any, chunk_tokens: int) -> np.ndarray:
    """What texts cost at a width, in tokens: chunks as of `encode.chunk_rows`, and a share each."""
    rows, width = np.asarray(rows), np.asarray(width)
    chunks = -(-rows // np.maximum(1, chunk_tokens // width))
    return chunks * (-(-rows // chunks) * width + _CHUNK * chunk_tokens)


def plans(profiles_sr: np.ndarray, chunk_tokens: int, steps: int) -> tuple[Groups, ...]:
    """Plans for batches like these, from the tightest to the roomiest.

    Args:
        profiles_sr: int [sampled steps, texts of a device].
        chunk_tokens: tokens that are encoded at a time.
        steps: of the stage.

    Returns:
        One that holds all of these; before it, if the stage is long enough for it to be worth its
        compilation, one that holds the half of them with the fewest tokens; and a roomier one.
    """
    compiling = _COMPILE_TOKENS.get(jax.default_backend(), _ACCELERATOR_COMPILE_TOKENS)
    tokens_s = profiles_sr.sum(axis=1)
    price = max(_WORTH * float(tokens_s.mean()), compiling / steps)

    def made(profile_r: np.ndarray) -> Groups:
        return group(profile_r, chunk_tokens, price)

    def cost(groups: Groups) -> float:
        return float(_tokens(groups.rows, groups.widths, chunk_tokens).sum())

    most_r = profiles_sr.max(axis=0)
    shift = max(1, len(most_r) // 16)
    roomy_r = np.concatenate([most_r[shift:], np.full(shift, most_r[-1])])
    found = [made(most_r), made(roomy_r)]
    tight = made(profiles_sr[tokens_s <= np.median(tokens_s)].max(axis=0))
    # All of a step is compiled once more for it: its groups, and about as much as two of them.
    if (cost(found[0]) - cost(tight)) * steps / 2 > compiling * (len(tight.rows) + 2):
        found.insert(0, tight)
    return tuple(dict.fromkeys(found))


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
            key: plans(profiles_sr, self.chunk_tokens, self.steps)
            for key, profiles_sr in whole.items()
            if profiles_sr.shape[1] * profiles_sr.max() > self.chunk_tokens
        }

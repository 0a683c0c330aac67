"""The widths at which the texts of a batch are encoded.

A batch has short and long texts, and when padded to its longest text it is mostly padding: 3.7
times the real tokens for the paragraphs of SQuAD, cut at 256. So a device sorts its texts by length
and encodes them in groups, each at its own width. Choices:

- **Shapes are planned, not found**: a step is compiled for a shape, and compiling takes longer than
  many steps. The r-th shortest of a hundred texts is about as long in every batch, so one plan for
  both sides, made before the first step from a sample of the stage's steps, fits nearly all of
  them.
- A batch that does not fit the plan uses the next wider one, the last of which has the length of
  the stage's longest text. So no text is ever cut, and a stage has at most four shapes for each
  number of passages in a batch, or two if the sample is the whole stage.
- Lengths are known without a batch being built (`lengths(step)`), and a plan fits the texts of
  *every* device, so all processes choose the same one without communication.
- A group is made where it saves more than it costs. Each is compiled separately, so a long stage
  has more of them than a short one; and every chunk has a cost in addition to its tokens. A long
  stage also gets a tighter plan, for the half of its batches that have fewer tokens.
- If texts are not encoded in chunks, or token vectors have to be reassembled, a side has one group,
  whose width is still planned.

Only the padding changes: results are the same up to rounding, except with dropout, whose draws
depend on the width. A plan follows from data, seed and length of the stage, so a resumed run has
the same plans.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from nvret_jax import platforms
from nvret_jax.training.stage import Batches, prefetched

_BUCKET = 8  # widths are multiples of this
_SAMPLED_ROWS = 65_536  # queries sampled for a plan, and
_SAMPLED_STEPS = (16, 256)  # the fewest and the most steps they are of
_WORTH = 0.01  # share of a batch's tokens that a further group must save at least
# The cost of a chunk in addition to its tokens, as a share of a full one: 117 tokens of 1,024 for
# MiniLM on a CPU. The gradients of all weights are summed, and the products are small.
_CHUNK = 1 / 8
_CUTS = 1024  # positions where a group may end


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Groups:
    """How a device encodes its texts: the shortest `rows[0]` at `widths[0]` tokens, and so on.

    Passed to a jitted function as part of the shapes of its arguments, not as an array.
    """

    rows: tuple[int, ...]
    widths: tuple[int, ...]

    def hold(self, profile_r: np.ndarray) -> bool:
        """Whether texts of these lengths, sorted ascending, fit."""
        return bool((np.repeat(self.widths, self.rows) >= profile_r).all())


Plan = Mapping[str, Groups]  # of each side


class Measured(Batches, Protocol):
    """Batches that know the lengths of their texts.

    Attributes:
        longest: by side, tokens of the longest text that any batch may have.
    """

    longest: Mapping[str, int]

    def lengths(self, step: int) -> Mapping[str, np.ndarray]:
        """'query' and 'passage': int [B], [N], tokens of each text of the global batch."""
        ...


def profile(lengths_n: np.ndarray, parts: int) -> np.ndarray:
    """The largest length of the r-th shortest text of any device; int [N / parts].

    Args:
        lengths_n: of the global batch.
        parts: ranges of equal size, one per device.
    """
    return np.sort(lengths_n.reshape(parts, -1), axis=1).max(axis=0)


def group(profile_r: np.ndarray, chunk_tokens: int, price: float) -> Groups:
    """The cheapest groups.

    Args:
        profile_r: int, lengths in ascending order, which must fit.
        chunk_tokens: tokens that are encoded at a time; -1: all, in one group.
        price: cost of a further group, in tokens.
    """
    if chunk_tokens < 0:
        return whole(len(profile_r), profile_r[-1])
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
    """Cost of texts at a width, in tokens: chunks as in `gradcache.chunk_rows`, and overhead."""
    rows, width = np.asarray(rows), np.asarray(width)
    if chunk_tokens < 0:
        return rows * width
    chunks = -(-rows // np.maximum(1, chunk_tokens // width))
    return chunks * (-(-rows // chunks) * width + _CHUNK * chunk_tokens)


def whole(rows: int, tokens: int) -> Groups:
    """One group of all texts."""
    return Groups((rows,), (int(_rounded(tokens)),))


def plans(
    profiles: Mapping[str, np.ndarray],
    longest: Mapping[str, int],
    chunk_tokens: int,
    steps: int,
    platform: str = "",
) -> tuple[Plan, ...]:
    """Plans for batches like these, from the tightest to the widest.

    Args:
        profiles: by side, int [sampled steps, texts of a device].
        longest: by side, tokens of the longest text.
        chunk_tokens: tokens that are encoded at a time; -1: all.
        steps: of the stage.
        platform: 'cpu', 'gpu' or 'tpu'; '': this process's.

    Returns:
        One that fits all of these; before it, if the stage is long enough to be worth its
        compilation, one that fits the half of them with the fewest tokens. If the stage has more
        steps than these, a wider one follows, and one that fits any batch.
    """
    compiling = platforms.limits(platform).compile_tokens
    tokens_s = sum(profiles_sr.sum(axis=1) for profiles_sr in profiles.values())
    price = max(_WORTH * float(tokens_s.mean()), compiling / steps)

    def made(rows: Mapping[str, np.ndarray]) -> Plan:
        return {side: group(profile_r, chunk_tokens, price) for side, profile_r in rows.items()}

    def cost(plan: Plan) -> float:
        return float(sum(_tokens(g.rows, g.widths, chunk_tokens).sum() for g in plan.values()))

    most = {side: profiles_sr.max(axis=0) for side, profiles_sr in profiles.items()}
    found = [made(most)]
    fewer_s = tokens_s <= np.median(tokens_s)
    tight = made({side: profiles_sr[fewer_s].max(axis=0) for side, profiles_sr in profiles.items()})
    # A whole step is compiled again for it: its groups, and as much as about two further groups.
    groups = sum(len(g.rows) for g in tight.values())
    if (cost(found[0]) - cost(tight)) * steps / 2 > compiling * (groups + 2):
        found.insert(0, tight)
    if len(tokens_s) < steps:
        roomy, any_ = {}, {}
        for side, most_r in most.items():
            shift, most_tokens = max(1, len(most_r) // 16), max(longest[side], int(most_r[-1]))
            roomy[side] = np.concatenate([most_r[shift:], np.full(shift, most_tokens)])
            any_[side] = whole(len(most_r), most_tokens)
        found += [made(roomy), any_]
    return tuple(plan for i, plan in enumerate(found) if plan not in found[:i])


def _rounded(lengths: Any) -> np.ndarray:
    return -(-np.asarray(lengths) // _BUCKET) * _BUCKET


def within(batch: dict[str, Any], positions: int) -> dict[str, Any]:
    """A batch no wider than the model's number of positions.

    Widths are rounded up to get few shapes; only padding is cut off here.
    """
    out = dict(batch)
    for side in ("query", "passage"):
        for name in (f"{side}_tokens", f"{side}_real"):
            if name in out:
                out[name] = out[name][:, :positions]
        groups = out.get(f"{side}_groups")
        if groups is not None:
            widths = tuple(min(width, positions) for width in groups.widths)
            out[f"{side}_groups"] = dataclasses.replace(groups, widths=widths)
    return out


@dataclasses.dataclass
class Grouped:
    """A stage's batches, at the planned widths.

    The tokens of a batch get the width of their side's widest group; several groups are in the
    batch under '{side}_groups' (`Groups`).

    Attributes:
        batches: of the stage.
        parts: devices a batch is split over.
        chunk_tokens: tokens a device encodes at a time; -1: all of its texts, at one width.
        platform: as in `plans`.
        plans: by numbers of queries and passages, which differ between sources of a mixture.
        useful: real tokens as a share of the computed ones, in the sample.
    """

    batches: Measured
    parts: int
    chunk_tokens: int
    platform: str = ""

    def __post_init__(self):
        self.seed, self.steps = self.batches.seed, self.batches.steps
        sampled = self._sampled()
        self.plans = {
            rows: plans(
                profiles, self.batches.longest, self.chunk_tokens, self.steps, self.platform
            )
            for rows, (profiles, _) in sampled.items()
        }
        real = sum(tokens for _, tokens in sampled.values())
        self.useful = real / max(1, sum(self._computed(*part) for part in sampled.items()))

    def batch(self, step: int, start: int, stop: int) -> dict[str, Any]:
        """Rows start..stop of the global batch of one step, counted from 0."""
        batch = self.batches.batch(step, start, stop)
        for side, groups in self.plan(step).items():
            for name in (f"{side}_tokens", f"{side}_real"):
                if name in batch:  # values in padding have no effect
                    fill = max(0, groups.widths[-1] - batch[name].shape[1])
                    padded = np.pad(batch[name], ((0, 0), (0, fill)))
                    batch[name] = padded[:, : groups.widths[-1]]
            if len(groups.rows) > 1:
                batch[f"{side}_groups"] = groups
        return batch

    def dataset(self, first: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The same for steps first..steps in order, prepared ahead."""
        return prefetched(lambda step: self.batch(step, start, stop), first, self.steps)

    def lengths(self, step: int) -> dict[str, np.ndarray]:
        """Tokens of each text of a side, over the whole batch of a step."""
        return self.batches.lengths(step)

    def plan(self, step: int) -> Plan:
        """The groups of each side in one step."""
        lengths = self.batches.lengths(step)
        profiles = {side: profile(lengths_n, self.parts) for side, lengths_n in lengths.items()}
        for plan in self.plans.get(_rows(lengths), ()):
            if _holds(plan, profiles):
                return plan
        # A source with so few steps that none is in the sample.
        longest = self.batches.longest
        return {side: whole(len(own_r), longest[side]) for side, own_r in profiles.items()}

    def _sampled(self) -> dict[tuple[int, int], tuple[dict[str, np.ndarray], int]]:
        """By numbers of texts: profiles of both sides [steps, texts], and their real tokens."""
        found: dict[tuple[int, int], list[dict[str, np.ndarray]]] = {}
        tokens: dict[tuple[int, int], int] = {}
        least, most = _SAMPLED_STEPS
        batch_size = len(self.batches.lengths(0)["query"])
        wanted = min(max(_SAMPLED_ROWS // batch_size, least), most, self.steps)
        for step in np.unique(np.linspace(0, self.steps - 1, wanted).astype(int)).tolist():
            lengths = self.batches.lengths(step)
            rows = _rows(lengths)
            own = {side: profile(lengths_n, self.parts) for side, lengths_n in lengths.items()}
            found.setdefault(rows, []).append(own)
            tokens[rows] = tokens.get(rows, 0) + sum(int(n.sum()) for n in lengths.values())
        return {
            rows: ({side: np.stack([own[side] for own in all_]) for side in all_[0]}, tokens[rows])
            for rows, all_ in found.items()
        }

    def _computed(self, rows: tuple[int, int], sampled: tuple[dict[str, np.ndarray], int]) -> int:
        """Tokens that the sampled steps compute, over all devices."""
        profiles, known, total = sampled[0], self.plans[rows], 0
        for step in range(len(next(iter(profiles.values())))):
            own = {side: profiles_sr[step] for side, profiles_sr in profiles.items()}
            plan = next(plan for plan in known if _holds(plan, own))
            total += sum(int(np.dot(g.rows, g.widths)) for g in plan.values())
        return total * self.parts


def _rows(lengths: Mapping[str, np.ndarray]) -> tuple[int, int]:
    return len(lengths["query"]), len(lengths["passage"])


def _holds(plan: Plan, profiles: Mapping[str, np.ndarray]) -> bool:
    return all(plan[side].hold(profile_r) for side, profile_r in profiles.items())

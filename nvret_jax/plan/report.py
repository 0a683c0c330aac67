"""A plan in words: the cost of each step on a chip, the limiting resource, and how to make it fit.

Time is a roofline: the largest of operations over the peak of the matrix units, bytes over the
bandwidth of memory, and bytes over the bandwidth of the network. It is a lower bound: other
operations, latencies, sorting, gathers, waiting for the host and any lack of overlap add to it.
MFU, the model's own operations over what the chip could do in that time, is an upper bound.
"""

from __future__ import annotations

import math

from nvret_jax.plan.chips import Chip
from nvret_jax.plan.steps import Step

GB = 1e9
_ROW = "  {:<24}{}"


def heading(topology: str, chips: int, chip: Chip) -> str:
    """The first line of a plan."""
    return (
        f"{topology}: {chips} chips, {-(-chips // chip.per_host)} hosts; each chip "
        f"{chip.hbm / GB:.0f} GB, {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{chip.bandwidth / GB:,.0f} GB/s to memory, {chip.network / GB:.0f} GB/s to others"
    )


def report(step: Step, chip: Chip) -> str:
    """The cost of a step on each chip, line by line; the last line says whether it fits."""
    lines = [step.name, *step.notes, *_memory(step)]
    if step.compiled is not None:
        lines += _work(step, chip)
    return "\n".join([*lines, conclusion(step, chip)])


def _memory(step: Step) -> list[str]:
    rows = [*step.held.items(), ("arguments of the step", step.memory.arguments)]
    lines = [_ROW.format(name, f"{count / GB:10.3f} GB per chip") for name, count in rows]
    parts = [f"{name} {count / GB:.3f}" for name, count in step.parts.items() if count]
    if len(parts) > 1:
        lines[-1] += f"  ({', '.join(parts)})"
    rows = [("its temporaries", step.memory.temporaries), ("peak", step.peak)]
    return lines + [_ROW.format(name, f"{count / GB:10.3f} GB per chip") for name, count in rows]


def _work(step: Step, chip: Chip) -> list[str]:
    calls, seconds = step.calls, step.seconds(chip)
    flops, moved = step.xla_counts()
    once = ", a loop's body once" if step.looped else ""

    def xla(count: float) -> str:
        return f"  (XLA counts {calls * count:.4g}{once})" if count else ""

    lines = []
    if calls > 1:
        lines.append(_ROW.format("calls", f"{calls:10,}"))
    done = f"{calls * step.flops.total:10.4g} per chip"
    if step.flops.float32 and step.flops.fast:
        done += f", {calls * step.flops.float32:.4g} of them in float32"
    lines.append(_ROW.format("FLOPs", done + xla(flops)))
    if step.needed:
        again = step.flops.total / step.needed
        needed = f"{calls * step.needed:10.4g} per chip; done are {again:.2f} times that"
        lines.append(_ROW.format("FLOPs of the model", needed))
    bytes_moved = f"{calls * step.hbm_bytes:10.4g} per chip"
    lines.append(_ROW.format("HBM bytes", bytes_moved + xla(moved)))
    if step.sorting:
        sorting = f"{calls * step.sorting:10.4g} operations on elements per chip"
        lines.append(_ROW.format("sorting", sorting))
    if step.network is None:
        lines.append(_ROW.format("collectives", "   unknown: JAX cannot read the program back"))
    for found in step.network or ():
        per = ", a loop of unknown length counted once" if found.per_iteration else ""
        lines.append(
            _ROW.format(
                found.kind,
                f"{calls * found.bytes:10.4g} bytes per chip in {calls * found.count:,} calls{per}",
            )
        )
    binds = max(seconds, key=seconds.get)
    verb = "bind" if binds == "FLOPs" else "binds"
    others = [
        f"{name} would take {seconds[name]:.3f} s ({seconds[name] / seconds[binds]:.0%})"
        for name in sorted(seconds, key=seconds.get, reverse=True)
        if name != binds and seconds[name]
    ]
    lines.append(
        _ROW.format("roofline", f"{seconds[binds]:10.3f} s: {binds} {verb}; {', '.join(others)}")
    )
    if step.stage == "search" and moved and not step.looped:
        slower = max(calls * moved / chip.bandwidth, seconds["FLOPs"])
        lines.append(_ROW.format("by the bytes XLA counts", f"{slower:10.3f} s"))
    if step.needed:
        count, items = step.items
        rate = calls * count / seconds[binds]
        lines.append(
            _ROW.format("MFU, at most", f"{step.mfu(chip):10.0%}; {rate:,.0f} {items}/s at most")
        )
    return lines


def conclusion(step: Step, chip: Chip) -> str:
    """Whether a step fits, in one line; the line of one that does not says what to change."""
    share = step.peak / chip.hbm
    if fits(step, chip):
        return f"fits: {step.peak / GB:.2f} of {chip.hbm / GB:.0f} GB per chip ({share:.0%})"
    return f"DOES NOT FIT: {advice(step, chip)}"


def fits(step: Step, chip: Chip) -> bool:
    """Whether the step compiled, and its peak fits the chip's memory."""
    return step.compiled is not None and step.peak <= chip.hbm


def advice(step: Step, chip: Chip) -> str:
    """The excess of a step, its largest part, and what makes that smaller."""
    over = step.peak - chip.hbm
    kept = step.memory.arguments + sum(step.held.values())
    size = f"{step.peak / GB:.1f} of {chip.hbm / GB:.0f} GB per chip"
    size += f", {over / GB:.1f} GB too many" if over > 0 else ", and the compiler reserves some"
    if kept > step.memory.temporaries:
        parts = {**step.parts, **step.held}
        largest = max(parts, key=parts.get)
        cause = f"most of it arguments ({kept / GB:.1f} GB, of which {largest} "
        cause += f"{parts[largest] / GB:.1f} GB)"
        return f"{size}; {cause}; {_smaller_arguments(step)}"
    cause = f"most of it temporaries ({step.memory.temporaries / GB:.1f} GB of activations)"
    return f"{size}; {cause}; {_smaller_temporaries(step, chip.hbm - kept)}"


def _smaller_arguments(step: Step) -> str:
    if step.stage == "search":
        return "take a larger topology, or let search.memory_gib stream the passages"
    ways = ["a larger mesh.fsdp or mesh.tensor splits the weights"]
    if step.stage == "train" and "lora" not in step.chosen:
        ways.append(
            "student.lora_rank trains only adapters, without optimizer state for all weights"
        )
    if "small weights" not in step.chosen and (step.stage == "embed" or "lora" in step.chosen):
        ways.append("frozen weights in bfloat16 (param_dtype) take half")
    return "; ".join([*ways, "or take a larger topology"])


def _smaller_temporaries(step: Step, free: float) -> str:
    if step.stage == "search":
        return "lower search.memory_gib"
    knob = "embed.token_budget" if step.stage == "embed" else "train.chunk_tokens"
    ways = [f"lower {knob}"]
    # Most activations grow with the tokens of a chunk; a tenth is left for the others.
    share = 0.9 * free / max(1, step.memory.temporaries)
    if 0 < share < 1 and step.at_once * share >= 1:
        about = 2 ** int(math.log2(step.at_once * share))
        ways[0] += f" (a chip encodes {step.at_once:,} tokens at once; try {about:,})"
    if step.stage == "train" and "remat" not in step.chosen:
        ways.append("student.remat='full'")
    if "bfloat16" not in step.chosen:
        ways.append("products in bfloat16 (dtype)")
    if step.stage == "train" and "ring" not in step.chosen:
        ways.append("train.loss.method='ring' if the batch is large")
    return "; ".join([*ways, "or a larger mesh.tensor"])

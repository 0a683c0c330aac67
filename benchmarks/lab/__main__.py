"""The laboratory's command.

    python -m benchmarks.lab rules --out=runs/lab                        # all cells of the grid
    python -m benchmarks.lab rules --out=runs/lab --only set=banking77 rule=naive,perc_pos
    python -m benchmarks.lab my_grid.py --out=runs/lab --devices 0 1 2 3
    python -m benchmarks.lab rules --out=runs/lab --set faq=pairs:/data/faq.csv --report
    python -m benchmarks.lab rules --out=runs/lab --page docs/paper.md   # its part of the page

Run again, it continues: finished cells are kept, a cell that was stopped goes on from where its
pipeline stopped. What fails is reported and does not stop the others; status 1: something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.lab import grid as grid_lib
from benchmarks.lab import sets, workers
from benchmarks.lab.cell import Job
from benchmarks.lab.grid import SET, DataSet, Grid
from nvret_jax.artifacts import claim
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        label: axis -> level.
        config: of the run.
        key: see `grid.keys_of`.
        hidden: the file of hidden positives, or ''.
    """

    label: dict[str, str]
    config: Any
    key: str
    hidden: str

    def result(self, out: pathlib.Path) -> pathlib.Path:
        """Where its result is written."""
        return out / "results" / f"{self.key[:16]}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a grid, or reports on it."""
    args = _arguments(argv)
    if args.work:
        workers.work()
        return 0
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the workers
    try:
        grid = grid_lib.read(args.grid)
        if args.set:
            grid = dataclasses.replace(grid, sets=_sets(args.set, grid))
        out = pathlib.Path(args.out).resolve()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: expected a folder ({error.strerror})") from None
        if args.student == "linear" and (args.devices or args.jobs):
            raise InputError(
                "--devices and --jobs are for whole students; linear ones run in one process"
            )
        from benchmarks.lab.linear import run as linear

        asks, failed = not args.report and not args.page, 0
        if args.student == "linear":
            grid = linear.changed(grid)
            cells = linear.cells_of(grid, out, _only(args.only))
            if asks:
                linear.run(grid, cells, out)
        else:
            cells = cells_of(grid, out, _only(args.only))
        if asks and args.student != "linear":
            failed = run(cells, out, args.devices, args.jobs, keep=args.keep)
        from benchmarks.lab import page

        name = pathlib.Path(args.grid).stem + ("_linear" if args.student == "linear" else "")
        page.write(name, grid, cells, out, pathlib.Path(args.page) if args.page else None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", flush=True)
        return 130
    return 1 if failed else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab", description=__doc__.splitlines()[0]
    )
    parser.add_argument("grid", nargs="?", default="rules", help="a name, or a Python file")
    parser.add_argument("--out", default="runs/lab", help="folder of data, logs and results")
    parser.add_argument(
        "--student", default="whole", choices=("whole", "linear"),
        help="linear: train a map of the student's stored vectors, a cell in a second",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=LEVEL,…")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=SOURCE",
        help="data sets in place of the grid's; ':visible' behind the name hides all positives "
        "but one",
    )  # fmt: skip
    parser.add_argument("--devices", nargs="+", default=[], help="numbers of accelerators")
    parser.add_argument(
        "--jobs", type=int, default=0, help="processes; 0: one per device (whole students)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the workdirs of cells")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument(
        "--page", metavar="FILE", help="run nothing, write the grid's part of a page"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _only(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = {}
    for one in given:
        axis, _, levels = one.partition("=")
        if not levels:
            raise InputError(f"--only {one}: expected AXIS=LEVEL,…, such as rule=naive,perc_pos")
        found[axis] = tuple(levels.split(","))
    return found


def _sets(given: Sequence[str], grid: Grid) -> dict[str, DataSet]:
    """Data sets named on the command line; a name of the grid keeps its values."""
    found = {}
    for one in given:
        name, equals, source = one.partition("=")
        name, _, how = name.partition(":")
        if not equals or how not in ("", "visible"):
            raise InputError(f"--set {one}: expected NAME=SOURCE or NAME:visible=SOURCE")
        old = grid.sets.get(name)
        found[name] = DataSet(source, how == "visible", old.values if old else {})
    return found


def cells_of(grid: Grid, out: pathlib.Path, only: grid_lib.Where) -> list[Cell]:
    """The cells of a grid; makes the data sets they read.

    Raises:
        InputError: a level that does not exist, data or a model that cannot be read.
    """
    labels = list(grid.labels(only))
    names = dict.fromkeys(label[SET] for label in labels)
    made = {name: sets.make(grid.sets[name], out / "data" / name) for name in names}
    found = []
    for label in labels:
        place = made[label[SET]]
        if place.hidden is not None or not grid.needs_hidden(label):
            found.append((label, grid.config(label, place.places), str(place.hidden or "")))
    keys = grid_lib.keys_of([config for _, config, _ in found], out)
    return [
        Cell(label, config, key, hidden)
        for (label, config, hidden), key in zip(found, keys, strict=True)
    ]


def run(
    cells: Sequence[Cell],
    out: pathlib.Path,
    devices: Sequence[str],
    jobs: int,
    *,
    keep: bool = False,
) -> int:
    """Runs the cells that have no result yet.

    Returns:
        How many failed.
    """
    open_cells = {cell.key: cell for cell in cells if not cell.result(out).exists()}
    chains = _chains(list(open_cells.values()), out, keep)
    total, begun, failed = sum(map(len, chains)), time.monotonic(), 0
    runs = {cell.key for cell in cells}
    print(f"{len(runs)} runs, {len(runs) - len(open_cells)} finished", flush=True)
    if not open_cells:
        return 0
    number = 0

    def done(job: Job, result: dict[str, Any]) -> None:
        nonlocal number, failed
        number += 1
        failed += "failed" in result
        if "failed" in result:
            said = f"failed: {result['failed']}"
        else:
            said = f"{result['seconds']} s, {result['cpu_seconds']} s of processors"
        minutes = (time.monotonic() - begun) / 60
        print(f"{number}/{total} {minutes:6.1f} min  {job.name:<44} {said}", flush=True)

    with claim.claimed(out), _stoppable():
        workers.run_all(chains, workers.environments(devices, jobs), done)
    return failed


def _chains(cells: Sequence[Cell], out: pathlib.Path, keep: bool) -> list[list[Job]]:
    """Of each group first the run that makes what its cells share, then they."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(grid_lib.group_of(cell.config), []).append(cell)
    chains = []
    for group, members in groups.items():
        folder = out / "work" / f"{members[0].label[SET]}-{digest(group)[:8]}"
        common = members[0].config.copy_and_resolve_references()
        used = [name for cell in members for name in cell.config.mining.teachers]
        # Random candidates depend on the seed and cost nothing: each cell makes its own.
        names = [n for n in dict.fromkeys(used) if _model(common, n) != "random:"]
        with common.ignore_type():
            common.mining.teachers = tuple(names)
            common.mining.rule = "naive"
        chain = []
        if names:
            label = {"what": f"shared by {members[0].label[SET]}"}
            workdir, stages = str(folder / "shared"), ("embed", "search")
            chain.append(Job(_plain(common), workdir, stages, label=label))
        chain += [
            Job(
                _plain(cell.config),
                str(folder / _folder(cell)),
                shared=str(folder / "shared"),
                result=str(cell.result(out)),
                label=cell.label,
                key=cell.key,
                hidden=cell.hidden,
                keep=keep,
            )
            for cell in members
        ]
        chains.append(chain)
    return chains


def _model(config: Any, teacher: str) -> str:
    return (config.teacher if teacher == "teacher" else config.teachers[teacher]).model


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))


def _folder(cell: Cell) -> str:
    words = "-".join(level for axis, level in cell.label.items() if axis != SET)
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', words)}-{cell.key[:8]}"


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: workers are asked to save."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())

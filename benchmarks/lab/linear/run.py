"""Cells of a grid with the linear student, one after the other in this process."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lab import grid as grid_lib
from benchmarks.lab import sets
from benchmarks.lab.grid import HIDDEN, SET, Grid
from benchmarks.lab.linear import task as task_lib
from benchmarks.lab.linear import train as train_lib
from nvret_jax import config as config_lib
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.config import sets as sets_lib
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import write_atomic
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.risk import relative
from nvret_jax.options import SEED, blocks
from nvret_jax.search.rankers import teachers
from nvret_jax.training.options import LAST, Training

_FORMAT = 1  # raised whenever a cell computes something else
EVERY = 10  # steps between dev scores
DEV = 150  # the most dev queries
# A step is cheap, so there are more of them.
VALUES = {"train.steps": 120, "train.batch_size": 32, "train.learning_rate": 1e-3}
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell; see `benchmarks.lab.__main__.Cell`."""

    label: dict[str, str]
    config: Any
    key: str

    def result(self, out: pathlib.Path) -> pathlib.Path:
        """Where its result is written."""
        return out / "linear" / f"{self.key[:16]}.json"


def changed(grid: Grid) -> Grid:
    """The grid with the values of the linear student."""
    own = {key: value for key, value in grid.values.items() if key not in VALUES}
    seeds = SEEDS if grid.until == "evaluate" else grid.seeds
    return dataclasses.replace(grid, values=own | VALUES, seeds=seeds)


def cells_of(grid: Grid, out: pathlib.Path, only: grid_lib.Where) -> list[Cell]:
    """The cells of a grid; makes the data sets they read."""
    found, made = [], {}
    for label in grid.labels(only):
        name = label[SET]
        if name not in made:
            made[name] = sets.make(grid.sets[name], out / "data" / name)
        if made[name].hidden is None and grid.needs_hidden(label):
            continue
        places = {HIDDEN: HIDDEN} | made[name].places
        config = grid.config(label, places)
        counted = _changed(config.to_dict(), _defaults(config))
        content = pathlib.Path(made[name].source.partition(":")[2]) / "content.txt"
        text = content.read_text() if content.exists() else made[name].source
        same = config.data.test == config.data.train
        other = config.data.test if same else grid.sets[name].values["data.test"]
        counted |= {"data.train": text, "data.test": text if same else other}
        counted |= {f"sets.{of}.source": text for of in config.sets}
        if "mining.verdicts" in counted:
            counted["mining.verdicts"] = HIDDEN
        key = digest([_FORMAT, EVERY, DEV, json.loads(json.dumps(counted, sort_keys=True))])
        found.append(Cell(label, config, key))
    return found


def _defaults(config: Any) -> dict[str, Any]:
    """The default of every value of a config, with its teachers, sets and stages of training."""
    start = config_lib.base()
    for name in config.teachers:
        config_lib.add_teacher(start, name, "")
    for name in config.sets:
        config_lib.add_set(start, name, "")
    for name in config.train_stages:
        config_lib.add_stage(start, name)
    return start.to_dict()


def _changed(config: Mapping[str, Any], start: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """The values that differ from the defaults, by dotted key: a new option changes no cell."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _changed(value, start.get(key, {}), f"{at}{key}.")
        elif key not in start or value != start[key]:
            found[at + key] = value
    return found


def run(grid: Grid, cells: Sequence[Cell], out: pathlib.Path) -> None:
    """Runs the cells that have no result yet."""
    waiting = [cell for cell in cells if not cell.result(out).exists()]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} finished", flush=True)
    for of in dict.fromkeys(cell.label[SET] for cell in waiting):
        group = [cell for cell in waiting if cell.label[SET] == of]
        made = sets.make(grid.sets[of], out / "data" / of)
        task = task_lib.read(made, group[0].config, out / "vectors")
        tables: dict[str, Negatives] = {}
        before = None
        for number, cell in enumerate(group, 1):
            begun = time.process_time()
            if grid.until == "mine":
                table = _table(task, cell.config, tables)
                result = _mined(task, table) | {"negatives": _ids(task, table)}
                said = f"{result['slots']} negatives"
            else:
                before = before or _Judged.of(task)
                result = _trained(task, before, cell, tables)
                said = f"nDCG@10 {result['ndcg_cut_10']:.4f}"
            result |= {"label": cell.label, "key": cell.key}
            result["cpu_seconds"] = round(time.process_time() - begun, 2)
            cell.result(out).parent.mkdir(exist_ok=True)
            write_atomic(cell.result(out), json.dumps(result))
            name = " ".join(cell.label.values())
            cpu = f"{result['cpu_seconds']} s of processors"
            print(f"{number}/{len(group)} {name:<44} {said}, {cpu}", flush=True)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """The vectors and judgments that scores are of; by split."""

    passages_nd: Mapping[str, np.ndarray]
    queries_qd: Mapping[str, np.ndarray]
    judged: Mapping[str, train_lib.Judged]
    ids: Mapping[str, Sequence[str]]

    @functools.cached_property
    def before(self) -> dict[str, float]:
        """Means of the untrained student on the test split."""
        width = self.passages_nd["test"].shape[1]
        found = self.scores("test", np.zeros((width, width), np.float32))
        return {
            name: float(values.mean())
            for name, values in zip(("ndcg_cut_10", "recall_100"), found, strict=True)
        }

    @classmethod
    def of(cls, task: task_lib.Task) -> _Judged:
        student, least = task.config.student, task.config.evaluation.min_relevance
        passages, queries, gains, ids = {}, {}, {}, {}
        for split, data in (("dev", task.data), ("test", task.tested)):
            corpus, table = data.corpus, data.split_queries(split)
            judged = data.qrels[split]
            kept = [i for i in table.ids if max(judged[i].values()) >= least]
            kept = kept[:DEV] if split == "dev" else kept
            rows = [table.row[i] for i in kept]
            gains_qn = np.zeros((len(kept), len(corpus)), np.float32)
            for number, query in enumerate(kept):
                for passage, grade in judged[query].items():
                    gains_qn[number, corpus.row[passage]] = grade if grade >= least else 0
                if query in corpus.row:  # as in BEIR, a query is not its own answer
                    gains_qn[number, corpus.row[query]] = -1
            queries[split] = task.encoded(student, split, data)[rows]
            passages[split] = task.encoded(student, "", data)
            gains[split], ids[split] = train_lib.Judged.of(gains_qn), kept
        return cls(passages, queries, gains, ids)

    def scores(self, split: str, map_dd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return train_lib.scores(
            map_dd, self.queries_qd[split], self.passages_nd[split], self.judged[split]
        )


def _table(task: task_lib.Task, config: Any, tables: dict[str, Negatives]) -> Negatives:
    drawn = config.mining.sampling != "top" or config.mining.ensemble == "cross"
    seeded = drawn or "random" in config.mining.teachers
    how = [config.mining.to_dict(), config.rescorer.to_dict(), config.seed if seeded else 0]
    name = json.dumps(how, sort_keys=True)
    if name not in tables:
        tables[name] = task.negatives(config)
    return tables[name]


def _trained(
    task: task_lib.Task, judged: _Judged, cell: Cell, tables: dict[str, Negatives]
) -> dict[str, Any]:
    """Trains round by round and stage by stage, as `pipeline.rounds` and `training.loop` do."""
    config = cell.config.copy_and_resolve_references()
    queries_qd = task.encoded(config.student, "train")
    passages_nd = task.encoded(config.student, "")
    dev, done, map_dd = [], 0, None
    for number in range(config.rounds):
        if number:
            vectors = queries_qd, passages_nd
            task = task.taught_by(tuple(train_lib.apply(map_dd, own) for own in vectors))
            config.mining.teachers, tables = ("teacher",), {}
            for block in config.sets.values():
                block.teachers = ()
        for seed, block, of in _stages(config):
            table = _table(task, of, tables)
            guide = task.guide(of) if block.loss.needs_guide or block.cluster_size else None
            steps = train_lib.batches(task, table, block, seed, guide)
            turned = map_dd is None and bool(block.loss.vectors and of.student.projection)
            maps = train_lib.train(
                queries_qd, passages_nd, steps, block, EVERY, guide, turned=turned, start=map_dd
            )
            dev += [
                [done + step, float(judged.scores("dev", own_dd)[0].mean())]
                for step, own_dd in maps[bool(done) :]
            ]
            done, map_dd = done + block.steps, maps[-1][1]
    ndcg, recall = judged.scores("test", map_dd)
    return {
        "ndcg_cut_10": float(ndcg.mean()),
        "recall_100": float(recall.mean()),
        "before": judged.before,
        "per_query": dict(zip(judged.ids["test"], np.round(ndcg, 6).tolist(), strict=True)),
        "dev": dev,
        **_mined(task, table),
    }


def _stages(config: Any) -> Iterator[tuple[int, Training, Any]]:
    """Seed, options and the set's config of each stage of a round."""
    for number, (name, stage) in enumerate(config_lib.stages_of(config).items()):
        block = blocks.read(Training, stage)
        names = sets_lib.sets_of(config, block.sets)
        if len(names) != 1 or block.start != LAST:
            raise InputError(
                f"stage {name}: a linear student's stage reads one set and starts from the last; "
                f"it has {', '.join(names)} and start={block.start!r}"
            )
        own = names[0] != config_lib.MAIN_SET
        of = sets_lib.set_config(config, names[0]) if own else config
        if of.data.train != config.data.train:
            raise InputError(f"sets.{names[0]}.source: a linear cell has one data set")
        loss = block.loss.for_scores(cosines=_gives_cosines(of))
        yield (config.seed + number) % SEED.high, dataclasses.replace(block, loss=loss), of


def _gives_cosines(config: Any) -> bool:
    """Whether distillation fits cosines; as the pipeline decides."""
    crossed = config.rescorer.model and config.rescorer.order != "unchanged"
    return (
        not config.mining.targets
        and not crossed
        and all(
            teachers.has_vectors((config.teacher if n == "teacher" else config.teachers[n]).model)
            for n in config.mining.teachers
        )
    )


def _ids(task: task_lib.Task, table: Negatives) -> dict[str, list[str]]:
    queries, corpus = task.queries.ids, task.data.corpus.ids
    return {
        queries[query]: [corpus[passage] for passage in table.negative_rows[row].tolist()]
        for row, query in enumerate(table.query_rows.tolist())
    }


def _mined(task: task_lib.Task, table: Negatives) -> dict[str, Any]:
    """As `cell._mined`."""
    counts = task.known(table)
    slots, false = (sum(c[at] for c in counts.values()) for at in (0, 1))
    out: dict[str, Any] = {"rows": len(table), "slots": slots}
    if task.hidden and slots:
        out |= {"false_negative_share": false / slots, "false_negatives": counts}
    entries = table.negative_rows
    anchors = table.positive_scores.reduce(np.minimum, np.nan)[entries.row_of]
    hardness = 1 + relative(table.negative_scores.values, anchors)
    if slots and np.isfinite(hardness).all() and table.teachers != ("random",):
        out["hardness"] = float(hardness.mean())
    return out

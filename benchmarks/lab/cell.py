"""One cell: the pipeline's stages in a separate workdir, and what is read from it afterwards.

Nothing here mines, trains or scores. A cell's result is a JSON file that appears whole; its workdir
is then removed, as a student's checkpoints are large and a cell can be run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.lab import sets, shared
from nvret_jax.files.atomic import remove, write_atomic

MEASURES = ("ndcg_cut_10", "recall_100")
_DONE = re.compile(r"^(\w+) +done in ([\d.]+) s$", re.M)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is asked for.

    Attributes:
        config: of the run, with all its values, as `ConfigDict.to_json_best_effort` writes it.
        stages: of it that run; (): all.
        workdir: of the run.
        shared: workdir that artefacts are linked from; '': none.
        result: file that is written; '': none.
        label: axis -> level.
        key: see `grid.keys_of`.
        hidden: file of hidden positives; '': none.
        keep: whether the workdir stays.
    """

    config: dict[str, Any]
    workdir: str
    stages: tuple[str, ...] = ()
    shared: str = ""
    result: str = ""
    label: Mapping[str, str] = dataclasses.field(default_factory=dict)
    key: str = ""
    hidden: str = ""
    keep: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(self.label.values()) or pathlib.Path(self.workdir).name


def run(job: Job) -> dict[str, Any]:
    """Runs a job in this process; its output goes into a log beside the workdir.

    Returns:
        What is said of it: 'seconds', and 'cpu_seconds' over all cores.
    """
    from nvret_jax import pipeline

    workdir = pathlib.Path(job.workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    if job.shared:
        shared.link(pathlib.Path(job.shared), workdir)
    begun, used = time.monotonic(), time.process_time()
    log = workdir.with_suffix(".log")
    with _into(log):
        pipeline.run(config_of(job.config), workdir, stages=job.stages)
    seconds = round(time.monotonic() - begun, 1)
    cpu = round(time.process_time() - used, 1)
    if job.shared:
        shared.link(workdir, pathlib.Path(job.shared), but=("student",))
    if job.result:
        found = read(workdir, job.config, job.hidden)
        found |= {"label": dict(job.label), "key": job.key, "seconds": seconds, "cpu_seconds": cpu}
        found["stage_seconds"] = {k: float(v) for k, v in _DONE.findall(log.read_text())}
        pathlib.Path(job.result).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(job.result, json.dumps(found))
        if not job.keep:
            remove(workdir)
    return {"seconds": seconds, "cpu_seconds": cpu}


def config_of(values: Mapping[str, Any]):
    """The config that JSON holds: lists are tuples again."""
    from nvret_jax import config as config_lib

    config = config_lib.base()
    for table, make in (
        ("teachers", config_lib.encoder),
        ("sets", config_lib.training_set),
        ("train_stages", lambda: config.train),
    ):
        for name in values[table]:
            with config.unlocked():
                config[table][name] = make()
    _fill(config, values)
    return config


def _fill(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _fill(config[key], value)
        else:
            with config.ignore_type():
                config[key] = tuple(value) if isinstance(value, list) else value


def read(workdir: pathlib.Path, config: Mapping[str, Any], hidden: str = "") -> dict[str, Any]:
    """The results of a finished run.

    Returns:
        before: measure -> mean; per_query: query id -> nDCG@10 of the trained student; means of
        `MEASURES`; dev: [step, score] pairs; and what `_mined` says. Of a run that ends with its
        negatives, `_mined` alone, and negatives: query id -> passage ids, best first.
    """
    table = workdir / "negatives" / f"{config['data']['train_split']}.parquet"
    if "evaluate" not in config["stages"]:
        return _mined(table, config, hidden) | {"negatives": _negatives(table)}
    from nvret_jax.evaluation.output import evaluation_files

    (file,) = evaluation_files(workdir / "evaluation")
    evaluated = json.loads(file.read_text())
    out: dict[str, Any] = {name: evaluated[name] for name in MEASURES}
    before = evaluated.get("before", evaluated)  # of a run without training there is one alone
    out["before"] = {name: before[name] for name in MEASURES}
    out["per_query"] = {
        query: round(found["ndcg_cut_10"], 6) for query, found in evaluated["per_query"].items()
    }
    out["dev"] = []
    if (workdir / "metrics.jsonl").exists():
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        name = "dev_ndcg_cut_10"
        out["dev"] = [[line["step"], line[name]] for line in lines if name in line]
    return out | (_mined(table, config, hidden) if table.exists() else {})


def _mined(table: pathlib.Path, config: Mapping[str, Any], hidden: str) -> dict[str, Any]:
    """How many negatives there are, how hard they are, and how many are hidden positives.

    Where positives are hidden, also false_negatives: query id -> [negatives, false ones].
    """
    import numpy as np
    import pyarrow.parquet

    known, teachers = sets.hidden_positives(hidden), list(config["mining"]["teachers"])
    columns = ["query_id", "negative_ids", "negative_scores", "positive_scores"]
    rows = pyarrow.parquet.read_table(table, columns=columns).to_pylist()
    counts = {
        row["query_id"]: [
            len(row["negative_ids"]),
            len(known.get(row["query_id"], set()) & set(row["negative_ids"])),
        ]
        for row in rows
    }
    slots, false = (sum(count[at] for count in counts.values()) for at in (0, 1))
    relative = [
        1 - (min(row["positive_scores"]) - score) / abs(min(row["positive_scores"]))
        for row in rows
        for score in row["negative_scores"]
        if min(row["positive_scores"])
    ]
    found = {"rows": len(rows), "slots": slots}
    if slots and np.isfinite(relative).all() and teachers != ["random"]:  # it scores nothing
        found["hardness"] = float(np.mean(relative))
    if hidden and slots:
        found["false_negative_share"] = false / slots
        found["false_negatives"] = counts
    return found


def _negatives(table: pathlib.Path) -> dict[str, list[str]]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(table, columns=["query_id", "negative_ids"]).to_pylist()
    return {row["query_id"]: row["negative_ids"] for row in rows}


@contextlib.contextmanager
def _into(log: pathlib.Path) -> Iterator[None]:
    """Both output streams of the process, libraries' included, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        for at in (1, 2):
            os.dup2(file.fileno(), at)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for at, old in zip((1, 2), saved, strict=True):
                os.dup2(old, at)
                os.close(old)

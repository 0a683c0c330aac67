"""The laboratory: cells share what they can, are never redone, and intervals are what they say."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipeline")]
import tiny_project  # noqa: E402

from benchmarks.lab import __main__ as lab  # noqa: E402
from benchmarks.lab import bootstrap, page, results, sets, shared  # noqa: E402
from benchmarks.lab import grid as grid_lib  # noqa: E402
from benchmarks.lab.grid import DataSet  # noqa: E402
from nvret_jax.data.load import load_dataset  # noqa: E402
from nvret_jax.errors import InputError  # noqa: E402

GRID = """
from benchmarks.lab.grid import HIDDEN, DataSet, Grid

GRID = Grid(
    sets={{"tiny": DataSet("beir:{data}", visible=True)}},
    axes={{
        "rule": {{
            "naive": {{"mining.rule": "naive"}},
            "perc_pos": {{"mining.rule": "perc_pos"}},
            "oracle": {{"mining.verdicts": HIDDEN, "mining.rule": "naive",
                        "mining.verdict_mode": "remove"}},
        }}
    }},
    values={{
        "teacher.model": "{model}", "student.model": "{model}", "search.depth": 10,
        "train.batch_size": 4, "train.steps": 4, "train.num_negatives": 2, "train.eval_every": 2,
        "mining.num_negatives": 3, "train.warmup": 0.25,
    }},
    seeds=(0, 1),
    second="perc_pos",
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny data set in which most queries have three positives, a model, and a grid."""
    folder = tmp_path_factory.mktemp("lab")
    tiny_project.make(folder)
    qrels = folder / "data" / "qrels" / "train.tsv"
    more = [f"q{i}\tp{2 * i + k}\t1" for i in range(24) for k in (1, 40) if k == 40 or i % 5]
    qrels.write_text(qrels.read_text() + "\n".join(more) + "\n")
    grid = folder / "grid.py"
    grid.write_text(GRID.format(data=folder / "data", model=folder / "model"))
    return folder


def make(project, out):
    return lab.cells_of(grid_lib.read(str(project / "grid.py")), out, {})


def test_one_positive_stays_visible_and_the_others_are_known(project, tmp_path):
    cells = make(project, tmp_path)
    lines = (tmp_path / "data/tiny/qrels/train.tsv").read_text().splitlines()[1:]
    shown = [line.split("\t")[0] for line in lines]
    assert len(shown) == len(set(shown)) == 24
    hidden = sets.hidden_positives(cells[0].hidden)
    before = (project / "data/qrels/train.tsv").read_text().splitlines()[1:]
    pairs = {tuple(line.split("\t")[:2]) for line in before}
    kept = {tuple(line.split("\t")[:2]) for line in lines}
    assert {(q, p) for q, passages in hidden.items() for p in passages} == pairs - kept
    assert len(pairs - kept) > 24
    # Other splits keep all.
    for split in ("dev", "test"):
        old, new = (f / f"qrels/{split}.tsv" for f in (project / "data", tmp_path / "data/tiny"))
        assert sorted(old.read_text().split()) == sorted(new.read_text().split())


def test_some_queries_of_training_get_the_judgments_of_another(project, tmp_path):
    data = load_dataset(f"beir:{project / 'data'}")
    wanted = DataSet(f"beir:{project / 'data'}", shuffled=0.5)
    made = load_dataset(sets.make(wanted, tmp_path / "wrong").source)
    before, after = data.qrels["train"], made.qrels["train"]
    assert list(after) == list(before)
    moved = [query for query in before if after[query] != before[query]]
    assert 6 <= len(moved) <= 18  # of 24
    judged = [[tuple(qrels[query].items()) for query in moved] for qrels in (before, after)]
    assert sorted(judged[0]) == sorted(judged[1])
    assert {s: made.qrels[s] for s in ("dev", "test")} == {
        s: data.qrels[s] for s in ("dev", "test")
    }
    assert made.corpus.ids == data.corpus.ids
    # Drawn once: the same again, and other shares take more of the same.
    again = load_dataset(sets.make(wanted, tmp_path / "again").source)
    assert again.fingerprint == made.fingerprint
    other = sets.make(dataclasses.replace(wanted, shuffled=0.2), tmp_path / "wrong")
    fewer = load_dataset(other.source).qrels["train"]
    assert {query for query in before if fewer[query] != before[query]} < set(moved)


def test_a_cell_is_known_by_what_it_computes(project, tmp_path):
    grid = grid_lib.read(str(project / "grid.py"))
    keys = {cell.key for cell in make(project, tmp_path)}
    assert len(keys) == 6
    moved = tmp_path / "moved"
    assert {cell.key for cell in make(project, moved)} == keys  # wherever its data are written
    data = project / "data/corpus.jsonl"
    text = data.read_text()
    try:
        data.write_text(text.replace('"text": "', '"text": "one ', 1))
        assert not {cell.key for cell in make(project, moved)} & keys
    finally:
        data.write_text(text)
    # What does not count for the result is no other run; what does is.
    label = next(iter(grid.labels()))
    places = {"source": f"beir:{tmp_path / 'data/tiny'}"}
    same, other, dev = (grid.config(label, places) for _ in range(3))
    same.train.log_every, other.train.steps, dev.train.eval_every = 3, 5, 1
    keys = grid_lib.keys_of([grid.config(label, places), same, other, dev], tmp_path)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    with pytest.raises(InputError, match="no rule=perc; it has naive, perc_pos"):
        list(grid.labels({"rule": ("perc",)}))
    with pytest.raises(InputError, match=r"config key 'mining\.percentage' is not known"):
        grid_lib.put(cells_config(grid), "mining.percentage", 1)


def cells_config(grid):
    return grid.config(next(iter(grid.labels())), {"source": "pydocs:"})


@pytest.mark.slow
def test_cells_share_resume_and_are_never_redone(project, tmp_path, capsys):
    """A grid is killed while it trains, begun again, and repeated."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.lab", str(project / "grid.py"), f"--out={out}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    first = subprocess.Popen(
        [*command, "--jobs=2", "--keep"], cwd=ROOT, env=env, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(out.glob("results/*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    first.kill()
    first.wait()
    time.sleep(5)  # its workers see that it is gone
    finished = {file: file.stat().st_mtime_ns for file in out.glob("results/*.json")}
    assert 1 <= len(finished) < 6
    assert all(json.loads(file.read_text())["per_query"] for file in finished)

    again = subprocess.run([*command, "--keep"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"6 runs, {len(finished)} finished" in again.stdout
    assert len(list(out.glob("results/*.json"))) == 6
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    # One copy of the teacher's vectors and of the candidates, under the names of all cells.
    (common,) = out.glob("work/*/shared")
    for cell in out.glob("work/*/*/config.json"):
        for name in ("candidates/teacher.parquet", "fingerprints/candidates/teacher.parquet.json"):
            assert (cell.parent / name).stat().st_ino == (common / name).stat().st_ino
    logs = [log.read_text() for log in out.glob("work/*/*.log") if log.stem != "shared"]
    assert not any("making candidates" in log for log in logs)

    third = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert third.returncode == 0
    assert "6 runs, 6 finished" in third.stdout
    found = results.load([(c.label, c.result(out)) for c in make(project, out)])
    assert len(found) == 6
    of_rule = {one["label"]["rule"]: one for one in found}
    assert of_rule["oracle"]["false_negative_share"] == 0
    assert of_rule["naive"]["false_negative_share"] > 0
    assert [step for step, _ in of_rule["naive"]["dev"]] == [0, 2, 4]
    table = page.tables(grid_lib.read(str(project / "grid.py")), found)
    assert table.count("| naive |") == 1
    assert "| perc_pos | 2 |" in table
    lines = (out / "grid.csv").read_text().splitlines()
    assert lines[0] == "seed,set,rule,key,measure,step,value"
    assert sum(",dev_ndcg_cut_10,2," in line for line in lines) == 6


def test_a_failed_cell_is_reported_and_stops_no_other(project, tmp_path, monkeypatch):
    done = {}

    class Fails:
        def __init__(self, environment):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        stop_all = staticmethod(lambda: None)

        def run(self, job):
            bad = job.label.get("rule") == "perc_pos" or "other" in job.workdir
            return {"failed": "why"} if bad else {"seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(lab.workers, "Worker", Fails)
    cells = make(project, tmp_path)
    chain = lab._chains(cells, tmp_path, False)[0]
    assert len(chain) == 7
    assert chain[0].stages == ("embed", "search")
    bad = [chain[0].__class__(**(vars(chain[0]) | {"workdir": "other"})), chain[1]]
    lab.workers.run_all(
        [chain[:-1], bad], [{}, {}], lambda job, result: done.setdefault(id(job), (job, result))
    )
    failed = [job for job, result in done.values() if "failed" in result]
    assert len(done) >= 7
    assert sum(job.label.get("rule") == "perc_pos" for job in failed) == 2
    # What a shared run could not make is not tried.
    assert any(job.workdir == "other" for job in failed)


def test_linked_artefacts_do_not_change_with_their_copies(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("candidates/t.parquet", "embeddings/t/d/passages/c", "embeddings/student/d/x/c"):
        file = one / name
        file.parent.mkdir(parents=True)
        file.write_text("old")
    for name in ("candidates/t.parquet", "embeddings/t/d/passages", "embeddings/student/d/x"):
        record = one / "fingerprints" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    shared.link(one, two, but=("student",))
    assert (two / "candidates/t.parquet").read_text() == "old"
    assert (two / "embeddings/t/d/passages/c").read_text() == "old"
    assert not (two / "embeddings/student").exists()
    # As the pipeline writes: aside, then the name.
    (two / "new").write_text("new")
    (two / "new").replace(two / "candidates/t.parquet")
    assert (one / "candidates/t.parquet").read_text() == "old"
    shared.link(one, two)
    assert (two / "candidates/t.parquet").read_text() == "new"  # what is there stays


def test_the_bootstrap_resamples_queries_and_seeds():
    """Against loops over explicit draws: the same mean and, but for chance, the same interval."""
    rng = np.random.default_rng(3)
    deltas = [
        rng.normal(0.02, 0.2, (4, 60)) + rng.normal(0, 0.05, (4, 1)),
        rng.normal(-0.01, 0.1, (3, 200)) + rng.normal(0, 0.03, (3, 1)),
    ]
    found = bootstrap.paired(deltas, resamples=20_000, seed=1)
    draws = []
    for _ in range(6000):
        total = 0.0
        for delta in deltas:
            seeds, queries = delta.shape
            drawn = delta[rng.integers(seeds, size=seeds)][:, rng.integers(queries, size=queries)]
            total += drawn.mean()
        draws.append(total / 2)
    low, high = np.percentile(draws, [2.5, 97.5])
    width = high - low
    assert found.mean == pytest.approx(np.mean([delta.mean() for delta in deltas]))
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)
    assert found.seeds == 3
    # Seeds count: without their spread the interval would be half as wide.
    alone = bootstrap.paired([d.mean(axis=0, keepdims=True) for d in deltas], seed=1)
    assert alone.high - alone.low < 0.8 * width


def test_pairs_are_compared_by_seed_and_query():
    one = {"0": {"per_query": {"a": 0.1, "b": 0.5}}, "1": {"per_query": {"a": 0.2, "b": 0.2}}}
    other = {"1": {"per_query": {"b": 0.4, "a": 0.2}}, "2": {"per_query": {"a": 1, "b": 1}}}
    assert results.deltas(one, other).tolist() == [[0.0, 0.2]]
    assert results.deltas({"0": {}}, {"1": {}}) is None


def test_the_step_at_which_a_curve_reaches_a_score():
    points = [(0, 0.1), (10, 0.3), (20, 0.2), (30, 0.5)]
    assert results.reached(points, 0.2) == 5
    assert results.reached(points, 0.3) == 10
    assert results.reached(points, 0.4) == pytest.approx(20 + 10 * 2 / 3)
    assert results.reached(points, 0.05) == 0
    assert np.isnan(results.reached(points, 0.6))


def test_the_page_shows_commands_that_are_taken():
    text = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("lab", "paper"))
    lines = re.findall(r"^`?python -m benchmarks\.lab ([^`\n]*)`?", text, re.MULTILINE)
    assert len(lines) >= 12
    for line in lines:
        args = lab._arguments(shlex.split(line))
        grid = grid_lib.read(args.grid)
        lab._sets(args.set, grid)
        assert list(grid.labels(lab._only(args.only)))
    names = [path.stem for path in (ROOT / "benchmarks" / "lab" / "grids").glob("*.py")]
    assert all(f"`{name}`" in text for name in names)


def test_the_share_of_steps_has_an_interval_over_seeds():
    def cell(*values):
        return {"dev": [[10 * i, v] for i, v in enumerate(values)]}

    naive = {"0": cell(0.1, 0.2, 0.3), "1": cell(0.1, 0.2, 0.3)}
    fast = {"0": cell(0.1, 0.3, 0.4), "1": cell(0.1, 0.5, 0.6)}
    mean, low, high = results.steps_ratio(naive, fast)
    assert mean == pytest.approx(10 * 0.2 / 0.3 / 20)
    assert low == pytest.approx(10 * 0.2 / 0.4 / 20)
    assert high == pytest.approx(0.5)
    assert results.steps_ratio(naive, {"0": cell(0.1, 0.2, 0.2)}) == (np.inf, np.inf, np.inf)
    assert results.steps_ratio({"0": cell(0.3, 0.2)}, {"0": cell(0.1, 0.2)}) is None
    assert results.steps_ratio(naive, {"2": cell(0.1)}) is None

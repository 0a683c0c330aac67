"""Nothing is done twice, only what changed is done again, and a killed run ends like any other."""

import json
import shutil
import signal
import threading
import time

import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import tiny_project

from nvret_jax.config import DEFAULT_STAGES
from nvret_jax.files.atomic import files_below
from nvret_jax.pipeline import provenance
from nvret_jax.search.store import EmbeddingStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of the project, workdir of an undisturbed run, what it printed)."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_project.make(folder)
    output = tiny_project.run(folder, folder / "undisturbed")
    return folder, folder / "undisturbed", output


# Metrics hold speeds, and Orbax writes times into its files.
_CLOCK = ("../metrics.jsonl", "../tensorboard", "train/")


def assert_same_artifacts(ours, theirs):
    """Every artefact of two workdirs, bit by bit where bits mean something."""
    names = {p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file()}
    skipped = ("checkpoints", "tensorboard", "embeddings")
    for name in sorted(names):
        if name.parts[0] in skipped:
            continue
        mine, other = ours / name, theirs / name
        assert mine.exists(), name
        if name.suffix == ".parquet":
            assert pq.read_table(mine).equals(pq.read_table(other)), name
        elif name.parts[0] == "fingerprints":
            records = [json.loads(path.read_text()) for path in (mine, other)]
            for record in records:
                del record["sum"]
                if name.name == "report.html.json":
                    del record["files"]
                for file in [n for n in record.get("files", ()) if n.startswith(_CLOCK)]:
                    del record["files"][file]
            assert records[0] == records[1], name
        elif name.name == "metrics.jsonl":
            assert tiny_project.metrics(ours) == tiny_project.metrics(theirs)
        elif name.name == "report.html":
            assert tiny_project.page(ours) == tiny_project.page(theirs)
        elif name.name == "history.jsonl":
            stages = [[line["stage"] for line in provenance.read(w)] for w in (ours, theirs)]
            assert set(stages[0]) == set(stages[1])
        elif name.suffix == ".safetensors":
            a, b = safetensors.numpy.load_file(mine), safetensors.numpy.load_file(other)
            assert a.keys() == b.keys()
            assert all((a[key] == b[key]).all() for key in a), name
        else:
            assert mine.read_bytes() == other.read_bytes(), name
    stores = sorted(p.parent for p in (theirs / "embeddings").rglob("zarr.json"))
    assert stores
    for store in stores:
        mine = EmbeddingStore.open(ours / store.relative_to(theirs))
        assert (mine[:] == EmbeddingStore.open(store)[:]).all(), store
    assert not [p for p in ours.rglob("*.partial")]


def test_every_artefact_is_there(finished):
    _, workdir, output = finished
    for name in (
        "config.json",
        "candidates/teacher.parquet",
        "negatives/train.parquet",
        "checkpoints",
        "metrics.jsonl",
        "evaluation/data.json",
        "evaluation/data.trec",
        "evaluation/data.before.trec",
        "export/model.safetensors",
        "export/README.md",
        "evaluation/data.bm25.json",
        "evaluation/data.bm25.trec",
        "evaluation/data.overlap.json",
        "report.html",
        "history.jsonl",
        "embeddings/teacher/data/passages/zarr.json",
        "embeddings/student/data/queries-test/zarr.json",
    ):
        assert (workdir / name).exists(), name
    scores = json.loads((workdir / "evaluation" / "data.json").read_text())
    assert {"ndcg_cut_10", "recip_rank_10", "map", "recall_100", "before"} <= scores.keys()
    assert "nDCG@10" in output


def test_a_second_run_does_nothing_and_says_so(finished):
    folder, workdir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    output = tiny_project.run(folder, workdir)
    assert [line.split() for line in output.splitlines() if "up to date" in line] == [
        [stage, "up", "to", "date"] for stage in DEFAULT_STAGES
    ]
    assert "making" not in output
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert {p for p in after if before.get(p) != after[p]} <= {workdir / "config.json"}


def test_a_mining_value_redoes_mining_and_what_follows(finished):
    folder, workdir, _ = finished
    changed = "--config.mining.percent=0.8"
    plan = tiny_project.run(folder, workdir, changed, "--dry_run")
    stale = [line.split()[0] for line in plan.splitlines() if "would be made" in line]
    assert stale == ["mine", "train", "evaluate", "export", "report"]
    assert "would be made: mining.percent 0.95 → 0.8" in plan
    for stage in ("train", "evaluate", "export", "report"):
        lines = [line for line in plan.splitlines() if line.startswith(stage)]
        (line,) = [line for line in lines if "up to date" not in line]
        assert "would be made: negatives: mining.percent 0.95 → 0.8" in line
    # A value of a rule that is not in use changes nothing.
    unused = tiny_project.run(folder, workdir, "--config.mining.margin=0.2", "--dry_run")
    assert "would be made" not in unused


def test_a_stage_does_not_use_what_is_out_of_date(finished):
    folder, workdir, _ = finished
    process = tiny_project.start(folder, workdir, "--config.mining.percent=0.8", "--stages=train")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "negatives/train.parquet is needed but out of date" in line
    assert "mining.percent 0.95 → 0.8" in line


def written(workdir):
    """What a run has left so far: its files, and its lines of metrics."""
    files = set(files_below(workdir))  # which goes on where the run renames a folder meanwhile
    log = workdir / "metrics.jsonl"
    lines = log.read_text().count("\n") if log.exists() else 0
    return files | {f"line {i}" for i in range(lines)}


def kill_inside(folder, workdir, stage, writes):
    """Kills with SIGKILL once `stage` has begun and left `writes` new files or lines of metrics.

    Returns:
        Whether the stage had not ended by then.
    """
    process = tiny_project.start(folder, workdir)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()

    def printed(words):
        return any(line.startswith(f"{stage:<9} {words}") for line in lines.copy())

    while not printed("making") and process.poll() is None:
        time.sleep(0.001)
    before = written(workdir)
    while process.poll() is None and not printed("done"):
        if len(written(workdir) - before) >= writes:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reader.join(10)
    return printed("making") and not printed("done")


def test_sigterm_in_training_saves_and_the_same_command_goes_on(finished):
    folder, undisturbed, _ = finished
    workdir = folder / "asked-to-end"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints")
    process = tiny_project.start(folder, workdir, "--stages=train")
    for line in process.stdout:
        if "step 0: dev" in line:
            break
    while '"loss"' not in (workdir / "metrics.jsonl").read_text() and process.poll() is None:
        time.sleep(0.01)  # a step is done: there is something to save
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output[-3000:]
    (line,) = [x for x in output.splitlines() if "SIGTERM" in x]
    assert "of 20 of stage 'train'; the same command continues from there" in line
    assert "Traceback" not in output
    assert "resumed at step" in tiny_project.run(folder, workdir, "--stages=train")
    assert_same_artifacts(workdir, undisturbed)


@pytest.mark.slow
def test_killed_three_times_in_every_stage(finished):
    folder, undisturbed, _ = finished
    workdir = folder / "killed"
    kills = dict.fromkeys(DEFAULT_STAGES, 0)
    for stage in DEFAULT_STAGES:
        for writes in (0, 1, 4):
            kills[stage] += kill_inside(folder, workdir, stage, writes)
    assert all(kills.values()), kills
    print("kills per stage:", kills)
    tiny_project.run(folder, workdir)
    assert_same_artifacts(workdir, undisturbed)

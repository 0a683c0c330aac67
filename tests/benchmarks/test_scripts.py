"""Every benchmark script runs on a small case to its last line, which is its result."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DATA = os.environ.get("NVRET_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="needs $NVRET_DATA")


def result(script: str, *arguments: str) -> dict:
    """The JSON object that a script prints last."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_script_is_run_here():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
    here = pathlib.Path(__file__).read_text()
    assert {name for name in scripts if f'"{name}"' in here} == scripts


@pytest.mark.slow
def test_a_large_batch():
    found = result("bench_batch.py", "--queries=64", "--tokens=8", "--layers=1", "--width=32")
    # Random texts: about as likely as all others, of 64 × 2 passages.
    assert abs(found["loss"] - math.log(128)) < 0.5
    assert found["negatives"] == pytest.approx(127)


@pytest.mark.slow
def test_a_search_from_disk():
    found = result(
        "bench_scale.py", "--passages=20000", "--width=16", "--queries=20", "--k=5",
        "--memory_gib=0.1", "--skip", "resume",
    )  # fmt: skip
    assert found["two_processes_equal"] is True
    assert found["speed_vs_matmul"] > 0


@pytest.mark.slow
def test_a_search():
    found = result(
        "bench_search.py", "--passages=4096", "--width=16", "--queries=32", "--k=5", "--rounds=1",
        "--skip", "torch",
    )  # fmt: skip
    assert set(found["median_seconds"]) == {"ours", "matmul", "faiss"}


@needs_data
@pytest.mark.parity
def test_encoding():
    found = result(
        "bench_encode.py", f"--data=beir:{DATA}/cranfield", "--limit=16", "--max_length=16",
        "--rounds=1",
    )  # fmt: skip
    assert found["max_abs_difference"] < 1e-6
    assert found["ratio_vs_sentence_transformers"] > 0


@needs_data
@pytest.mark.parity
def test_mining():
    found = result(
        "bench_mine.py", f"--data=beir:{DATA}/cranfield", "--limit=20", "--max_length=16",
        "--rounds=1",
    )  # fmt: skip
    assert found["filled"] == 1.0
    assert found["same_negatives_as_theirs"]["nvret_jax"] > 0.9


@needs_data
@pytest.mark.slow
def test_risks():
    found = result(
        "bench_risk.py", f"--data=beir:{DATA}/banking77", "--split=dev", "--model=tiny:bert",
        "--max_length=16", "--queries=200", "--resamples=20",
    )  # fmt: skip
    assert found["queries"] == [100, 100]
    assert 0 <= found["labels"]["mean_error"] < 0.1
    assert [row["budget"] for row in found["ranks"]["budgets"]] == [0.02, 0.05, 0.1, 0.2, 0.3]


@needs_data
@pytest.mark.parity
def test_training():
    """Both sides train on the same batches: the losses of the first steps say so."""
    found = result(
        "bench_train.py", "--data", f"beir:{DATA}/squad", "--rounds=1", "--steps=2", "--pool=4",
        "--batch=4", "--max_length=32", "--stage=20",
    )  # fmt: skip
    assert found["data"]["squad"]["loss_difference"]["first_step"] < 1e-5
    assert found["data"]["squad"]["loss_difference"]["largest"] < 1e-4

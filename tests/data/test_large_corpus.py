"""A corpus of five million passages in parquet: what a run has resident when embedding starts."""

import pathlib
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_project

PASSAGES = 5_000_000
WORDS = " ".join(tiny_models.WORDS)


def write(folder: pathlib.Path) -> None:
    """mteb's layout, with passages of some 150 characters."""
    for name in ("corpus", "queries", "data"):
        (folder / name).mkdir(parents=True)
    schema = pa.schema({"_id": pa.string(), "title": pa.string(), "text": pa.string()})
    path = folder / "corpus" / "corpus-00000-of-00001.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, PASSAGES, 100_000):
            rows = range(start, start + 100_000)
            columns = {
                "_id": [f"passage-{row}" for row in rows],
                "title": [""] * len(rows),
                "text": [f"{row} {WORDS[row % 50 : row % 50 + 140]}" for row in rows],
            }
            writer.write_table(pa.table(columns, schema))
    queries = {"_id": ["q1", "q2"], "text": ["one of them", "another one"]}
    pq.write_table(pa.table(queries), folder / "queries" / "queries-00000-of-00001.parquet")
    judged = {"query-id": ["q1", "q2"], "corpus-id": ["passage-17", f"passage-{PASSAGES - 1}"]}
    for split in ("train", "test"):
        pq.write_table(pa.table(judged), folder / "data" / f"{split}-00000-of-00001.parquet")


def peak_gib(process: int) -> float:
    """The most memory a process has had resident."""
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


@pytest.mark.long
def test_five_million_passages_within_two_gib(tmp_path):
    write(tmp_path / "data")
    tiny_project.make_model(tmp_path / "model")
    workdir = tmp_path / "run"
    source = f"hf:{tmp_path / 'data'}"
    more = {"data.train": source, "data.test": source, "embed.chunk_rows": 4096}
    values = (f"--config.{key}={value}" for key, value in more.items())
    process = tiny_project.start(tmp_path, workdir, "--stages=embed", *values)
    try:
        end = time.monotonic() + 1500
        while not any(workdir.glob("embeddings/*/*/passages.partial/c/*")):
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < end
            time.sleep(1)
        peak = peak_gib(process.pid)
    finally:
        process.kill()
        process.wait()
    print(f"resident at most: {peak:.2f} GiB")
    assert peak < 2

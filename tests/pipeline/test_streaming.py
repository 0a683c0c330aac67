"""Mining over passages that are streamed from disk gives what mining over resident ones gives."""

import command
import pytest
import tiny_project

from nvret_jax.data import tables
from nvret_jax.search.index import memory


@pytest.fixture(scope="module")
def runs(compiled, tmp_path_factory):
    """Two workdirs, and what each run printed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield run_both(tmp_path_factory, monkeypatch)


def run_both(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("search")
    tiny_project.make(folder)
    printed = []
    for name, share in (("resident", memory.RESIDENT), ("in parts", 0.0)):
        # The corpus is so small that any budget would hold it.
        monkeypatch.setattr(memory, "RESIDENT", share)
        result = command.inside(
            command.CONFIG,
            f"--workdir={folder / name}",
            *command.flags_of(folder),
            "--stages=embed,search,mine",
            "--config.search.backend=device",
            "--config.search.memory_gib=0.01",
            "--config.mining.percent=0.6",  # leaves queries short, so that a second search is due
        )
        assert result.status == 0, result.stderr[-2000:]
        printed.append(result.stdout)
    return folder, printed


@pytest.mark.parametrize("table", ["candidates/teacher.parquet", "negatives/train.parquet"])
def test_the_tables_are_the_same(runs, table):
    folder, _ = runs
    one, other = (tables.read_table(folder / name / table, []) for name in ("resident", "in parts"))
    assert one.equals(other)
    assert one.num_rows == 24


def test_it_says_that_it_streams_and_finds_more_below_the_ceiling(runs):
    folder, (resident, streamed) = runs
    assert "stream" in streamed
    assert "stream" not in resident
    table = tables.read_table(folder / "in parts" / "negatives" / "train.parquet", [])
    assert any(0 in ranks for ranks in table["negative_ranks"].to_pylist())
    assert not list((folder / "in parts").rglob("*.partial"))

"""Writing and reading back loses nothing, for every format onto itself and through others."""

import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interchange_samples import (
    HOLDS,
    ROW_FORMATS,
    RUN_FORMATS,
    content,
    ids,
    plain_ids,
    rows,
    scores,
    table_content,
    target,
)

from nvret_jax.data import interchange
from nvret_jax.errors import InputError

quick = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RICH = {"ids", "plain ids", "titles", "scores", "extra", "passage_extra", "empty"}


def through(found, name, folder):
    """Writes, reads; (rows, what was said)."""
    path, said = target(name, folder), []
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    interchange.write(found, name, path, said.append)
    return interchange.read(name, path, said.append), said


def test_every_format_of_rows_is_covered():
    assert set(HOLDS) == set(ROW_FORMATS)


@pytest.mark.parametrize("name", ROW_FORMATS)
@given(data=st.data())
@quick
def test_what_a_format_holds_comes_back(name, data, tmp_path):
    before = data.draw(rows(HOLDS[name]))
    after, said = through(before, name, tmp_path)
    assert content(after) == content(before)
    if "unused" in HOLDS[name]:
        assert table_content(after.passages) == table_content(before.passages)
    if "unused queries" in HOLDS[name]:
        assert table_content(after.queries) == table_content(before.queries)
    assert not [line for line in said if "no place" in line and "in no row" not in line]


@pytest.mark.parametrize("name", ROW_FORMATS)
@given(data=st.data())
@quick
def test_the_second_round_changes_nothing_whatever_the_first_lost(name, data, tmp_path):
    before = data.draw(rows(RICH))
    try:
        once, _ = through(before, name, tmp_path)
        twice, _ = through(once, name, tmp_path)
    except InputError:  # the format cannot hold a part of it, and says so
        return
    assert content(twice) == content(once)


FULL = ("tevatron", "tevatron-ids", "beir")
BY_ID = (*FULL, "three-table", "nemo")


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FULL, 2)))
@given(data=st.data())
@settings(quick, max_examples=5)
def test_pairs_that_hold_everything_lose_nothing(first, second, data, tmp_path):
    before = data.draw(rows(RICH - {"empty"}))
    once, _ = through(before, first, tmp_path)
    there, _ = through(once, second, tmp_path)
    back, _ = through(there, first, tmp_path)
    assert content(back) == content(before)
    held = table_content(once.passages)
    if "tevatron" in (first, second):  # which holds the passages of its rows alone
        held = {name: held[name] for name in back.passages.ids}
    assert table_content(back.passages) == held


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(BY_ID, 2)))
@given(data=st.data())
@settings(quick, max_examples=4)
def test_pairs_without_titles_lose_nothing_of_untitled_rows(first, second, data, tmp_path):
    before = data.draw(rows({"ids", "plain ids", "scores", "extra", "no negatives"}))
    once, _ = through(before, first, tmp_path)
    back, _ = through(through(once, second, tmp_path)[0], first, tmp_path)
    assert content(back) == content(before)


@pytest.mark.parametrize(
    ("first", "second"),
    list(
        itertools.combinations(
            ("flagembedding", "st-triplet-scores", "st-labeled-list-scores", "nemo-inline"), 2
        )
    ),
)
@given(data=st.data())
@settings(quick, max_examples=4)
def test_pairs_of_texts_alone_keep_texts_and_scores(first, second, data, tmp_path):
    before = data.draw(rows({"scores", "all scored", "distinct"}))
    once, _ = through(before, first, tmp_path)
    back, _ = through(through(once, second, tmp_path)[0], first, tmp_path)
    assert content(back) == content(before)


@pytest.mark.parametrize("name", [n for n in ROW_FORMATS if n.startswith("st-")])
@given(data=st.data())
@settings(quick, max_examples=4)
def test_jsonl_holds_the_same_as_parquet(name, data, tmp_path):
    before = data.draw(rows(HOLDS[name]))
    interchange.write(before, name, tmp_path / "a.jsonl", [].append)
    assert content(interchange.read(name, tmp_path / "a.jsonl", [].append)) == content(before)


file_records = st.fixed_dictionaries(
    {
        "query": st.text(max_size=4),
        "pos": st.lists(st.text(max_size=4), max_size=3),
        "neg": st.lists(st.text(max_size=4), max_size=3),
    },
    optional={
        "prompt": st.text(max_size=3),
        "type": st.sampled_from(["normal", "symmetric"]),
        "further": st.lists(st.integers(), max_size=2),
    },
)


@given(records=st.lists(file_records, min_size=1, max_size=4))
@quick
def test_a_flagembedding_file_comes_back_record_by_record(records, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    interchange.write(
        interchange.read("flagembedding", path), "flagembedding", tmp_path / "out.jsonl"
    )
    written = (tmp_path / "out.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line) for line in written] == records


@pytest.mark.parametrize("name", RUN_FORMATS)
@given(data=st.data())
@quick
def test_a_run_comes_back(name, data, tmp_path):
    names = (
        plain_ids
        if name == "trec"
        else ids.filter(lambda i: not set(i) & set("\t\r\n") and i.strip() and i[0] != "\ufeff")
    )
    in_range = scores.filter(lambda score: abs(score) <= np.finfo(np.float32).max)
    hits = st.dictionaries(names, in_range, min_size=1, max_size=4)
    run = data.draw(st.dictionaries(names, hits, min_size=1, max_size=3))
    interchange.write(run, name, tmp_path / "run")
    back = interchange.read(name, tmp_path / "run")
    order = {q: sorted(h, key=lambda p, h=h: -h[p]) for q, h in run.items()}
    assert {q: list(h) for q, h in back.items()} == order
    assert list(back) == list(run)
    if name == "msmarco":
        assert all(list(h.values()) == [-r for r in range(1, len(h) + 1)] for h in back.values())
        interchange.write(back, name, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "run").read_bytes()
    else:
        assert back == run

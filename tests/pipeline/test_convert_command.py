"""`python -m nvret_jax.main convert`: dispatched before any flag is read."""

import json

import command


def test_it_converts(tmp_path):
    row = {"query": "a b", "pos": ["c d"], "neg": ["e f", "g h"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    result = command.inside(
        "convert", f"flagembedding:{tmp_path}/in.jsonl", f"st-n-tuple:{tmp_path}/out.jsonl"
    )
    assert result.status == 0, result.stderr
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert list(written.values()) == ["a b", "c d", "e f", "g h"]


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    result = command.inside("convert", "flagembedding:/nowhere.jsonl", f"tevatron:{tmp_path}/o")
    assert "/nowhere.jsonl" in result.error
    assert not list(tmp_path.iterdir())


def test_help_lists_the_formats():
    result = command.inside("convert", "--help")
    assert result.status == 0
    for name in ("flagembedding", "tevatron-ids", "nemo", "arctic", "three-table", "questions"):
        assert f"  {name} " in result.stdout

"""A dev split that is held out where the data have none."""

import dataclasses

import pytest

from nvret_jax.data import held_out
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.data.options import Data
from nvret_jax.data.reading import read_wanted


def dataset(queries=200, shared=False, **more):
    """Two queries for each passage, or one passage for all."""
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()

    def text(what, i):
        return " ".join(f"{what}{word}{i}" for word in words)

    rows, last = range(queries), f"p{queries - 1}"
    corpus = TextTable(tuple(f"p{i}" for i in rows), [text("p", i) for i in rows])
    ids = tuple(f"q{i}" for i in rows)
    judged = [{"p0" if shared else f"p{i // 2}": 1, last: 0} for i in rows]
    qrels = {"train": dict(zip(ids, judged, strict=True))}
    given = {"train": {q: (last,) for q in ids}}
    table = TextTable(ids, [text("q", i) for i in range(queries)])
    return Dataset("some", corpus, table, qrels, "print", given=given, **more)


def test_a_share_is_held_out_and_no_passage_is_on_both_sides(capsys):
    data = dataset()
    found = held_out.hold_out(data, "train", "dev", 0.1)
    train, dev = found.qrels["train"], found.qrels["dev"]
    assert len(dev) == 20
    assert not train.keys() & dev.keys()
    assert {**train, **dev} == data.qrels["train"]
    passages = [{p for j in side.values() for p, g in j.items() if g} for side in (train, dev)]
    assert not passages[0] & passages[1]
    assert found.given["train"].keys() == train.keys()
    assert found.given["dev"].keys() == dev.keys()
    assert found.fingerprint != data.fingerprint
    assert "20 of 200 training queries are held out" in capsys.readouterr().out
    again = held_out.hold_out(dataset(), "train", "dev", 0.1)
    assert again.qrels == found.qrels


def test_too_few_or_inseparable_queries_are_all_trained_on(capsys):
    few = dataset(queries=40)
    assert held_out.hold_out(few, "train", "dev", 0.1) is few
    assert "10% of 40 training queries are fewer than 10" in capsys.readouterr().out
    joined = dataset(shared=True)
    assert held_out.hold_out(joined, "train", "dev", 0.1) is joined
    assert "no dev split is held out: some: 200 queries form 1 groups" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("has_dev", [True, False])
def test_only_what_is_missing_and_asked_for_is_held_out(monkeypatch, share, has_dev):
    data = dataset()
    if has_dev:
        data = dataclasses.replace(data, qrels=data.qrels | {"dev": {"q0": {"p0": 1}}})
    monkeypatch.setattr("nvret_jax.data.reading.load_dataset", lambda spec, **more: data)
    asked = Data(train="beir:x", test="", dev_share=share)
    found = read_wanted(asked, {}, trains=True, evaluates=False, download=False)["beir:x"]
    if share and not has_dev:
        assert len(found.qrels["dev"]) == 20
    else:
        assert found.qrels == data.qrels
    # What is only evaluated stays whole.
    asked = dataclasses.replace(asked, train="", test="beir:x", test_split="train")
    found = read_wanted(asked, {}, trains=False, evaluates=True, download=False)["beir:x"]
    assert found.qrels["train"] == data.qrels["train"]

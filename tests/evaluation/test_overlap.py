"""Test texts that were trained on are counted, equal ones and near copies."""

from __future__ import annotations

import json

import nvret_jax as nv
from nvret_jax.evaluation.overlap import Overlap, overlap

LONG = "how does the boundary layer of a thin plate in a supersonic flow of gas grow with heat at"
OTHER = "which words of this question have nothing at all in common with the ones before it please"


def data(queries: dict[str, str], passages: dict[str, str], split: str) -> nv.Dataset:
    pairs = dict(zip(queries, ({p: 1} for p in passages), strict=False))
    return nv.load_dataset(
        {"corpus": passages, "queries": queries, "qrels": {split: pairs}}, split=split
    )


def test_equal_and_near_texts_are_told_apart():
    train = data(
        {"q1": "What is a Wing?", "q2": LONG + " all"}, {"p1": "a b c d", "p2": "e f"}, "train"
    )
    test = data(
        {"t1": "what is  a wing", "t2": LONG + " last", "t3": OTHER},
        {"x1": "A b c d.", "x2": "e g", "x3": "h i j"},
        "test",
    )
    found = overlap(train, test)
    assert (found.queries.texts, found.queries.equal, found.queries.near) == (3, 1, 1)
    assert found.queries.ids == ("t1", "t2")
    assert (found.passages.equal, found.passages.near) == (1, 0)
    assert found.line() == (
        "overlap of data test with data train: 1 equal and 1 near of 3 queries; 1 equal and 0 near "
        "of 3 relevant passages"
    )
    assert found.counts()["queries"] == {"texts": 3, "equal": 1, "near": 1}
    assert Overlap.of(json.loads(json.dumps(found.record()))) == found
    assert found.sentence() == (
        "data test, compared with data train: of 3 queries, 1 equal one of training and 1 are near "
        "copies; of 3 relevant passages, 1 equal one of training and 0 are near copies."
    )


def test_a_corpus_in_common_is_no_overlap():
    passages = {f"p{i}": f"passage {i} {OTHER if i else LONG}" for i in range(2)}
    both = nv.load_dataset(
        {
            "corpus": passages,
            "queries": {"a": "one question", "b": "some other thing"},
            "qrels": {"train": {"a": {"p0": 1}}, "test": {"b": {"p1": 1}}},
        }
    )
    found = overlap(both, both)
    assert found.queries.equal == found.queries.near == 0
    assert found.passages.equal == found.passages.near == 0
    again = overlap(both, both, test_split="train")
    assert (again.queries.equal, again.passages.equal) == (1, 1)


def test_a_copy_of_a_copy_counts_and_copies_within_training_do_not():
    words = [*LONG.split(), "all"]
    copy, further = words[1:], ["so", "tell", "me", "then", *words[1:]]
    train = data(
        {"q1": " ".join(words), "q2": OTHER, "q3": f"{OTHER} do"},
        {"p1": "a b c d", "p2": "c d e f", "p3": "e f g h"},
        "train",
    )
    test = data(
        {"t1": " ".join(further), "t2": " ".join(copy), "t3": "something else entirely now"},
        {"x1": "i j k l", "x2": "k l m n", "x3": "m n o p"},
        "test",
    )
    assert overlap(train, test).queries.ids == ("t1", "t2")
    alone = data({"t1": " ".join(further)}, {"x1": "i j k l"}, "test")
    assert overlap(train, alone).queries.ids == ()  # below the threshold without t2

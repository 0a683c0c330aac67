"""Drawn splits: nothing that is equal, near or judged together stands on two sides."""

import random

import numpy as np
import pytest

from nvret_jax.data import near_copies, splits
from nvret_jax.data.normalize import normalize, words
from nvret_jax.data.splits import Shares, draw, of_name
from nvret_jax.errors import InputError


def triples(text):
    """The distinct word triples of a text; a shorter text is one."""
    found = words(text)
    if len(found) < 3:
        return {tuple(found)} if found else set()
    return set(zip(found, found[1:], found[2:], strict=False))


def near(a, b):
    a, b = triples(a), triples(b)
    return bool(a | b) and len(a & b) / len(a | b) >= near_copies.THRESHOLD


def texts_with_copies(seed):
    """Texts of which some are near copies of others, at many distances from the threshold."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(400)] + ["漢", "字"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 60))) for _ in range(60)]
    for text in texts[:40]:
        changed = text.split()
        for _ in range(rng.randint(0, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(vocabulary)
        texts.append(" ".join(changed).upper() + "!" * rng.randint(0, 1))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_joined_and_nothing_else(seed):
    texts = texts_with_copies(seed)
    groups = near_copies.Groups(len(texts))
    near_copies.join_near(texts, groups)
    wanted = near_copies.Groups(len(texts))
    for i in range(len(texts)):
        for j in range(i):
            if near(texts[i], texts[j]):
                wanted.join(i, j)
    assert groups.names().tolist() == wanted.names().tolist()
    assert len(set(wanted.names().tolist())) < len(texts) - 10


@pytest.mark.parametrize("seed", range(3))
def test_no_text_and_no_near_copy_is_on_two_sides(seed):
    passages, rng = texts_with_copies(seed), random.Random(seed)
    queries = [f"query number {i} of {rng.randint(0, 60)}" for i in range(80)]
    positives = [[rng.randrange(len(passages))] for _ in queries]
    found = draw(queries, passages, positives, Shares(0.1, 0.2, seed), "x")
    assert found.count("test") == 16
    assert found.count("dev") == 8
    sides = {}  # split -> texts of its queries and passages
    for query, split in enumerate(found):
        sides.setdefault(split, []).append(queries[query])
        sides[split] += [passages[p] for p in positives[query]]
    for a in sides:
        for b in sides:
            if a < b:
                both = {normalize(t) for t in sides[a]} & {normalize(t) for t in sides[b]}
                assert not both
                assert not any(near(x, y) for x in sides[a] for y in sides[b])


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    queries = [f"question {i}" for i in range(50)]
    passages = [f"answer number {i} to it" for i in range(50)]
    positives = [[i] for i in range(50)]
    found = dict(zip(queries, draw(queries, passages, positives, Shares(), "x"), strict=True))
    order = np.random.default_rng(0).permutation(50).tolist()
    again = draw(
        [queries[i] for i in order],
        [passages[i] for i in order[::-1]],
        [[49 - n] for n in range(50)],
        Shares(),
        "x",
    )
    assert [found[queries[i]] for i in order] == again
    other = draw(queries, passages, positives, Shares(seed=1), "x")
    assert list(found.values()) != other
    assert draw(queries, passages, positives, Shares(0, 0), "x") == ["train"] * 50


def test_equal_texts_are_one_group_also_without_near_copies():
    queries = [f"question {i}" for i in range(40)] + [f"QUESTION {i}!" for i in range(40)]
    passages = [f"answer {i} to it" for i in range(80)]
    found = draw(queries, passages, [[i] for i in range(80)], Shares(near=False), "x")
    assert found[:40] == found[40:]
    assert found.count("test") == found.count("dev") == 8


def test_one_large_group_is_trained_on_and_too_few_groups_are_an_error():
    queries = [f"q{i} asks" for i in range(30)]
    passages = [f"passage {i}" for i in range(30)]
    shared = [[0] if i < 20 else [i] for i in range(30)]
    found = draw(queries, passages, shared, Shares(), "x")
    assert set(found[:20]) == {"train"}
    assert found.count("test") == found.count("dev") == 3
    with pytest.raises(InputError, match=r"x: 30 queries form 1 groups .* leave .* \?test=0"):
        draw(queries, passages, [[0]] * 30, Shares(), "x")


def test_what_was_drawn_is_kept_and_never_believed_blindly(monkeypatch, tmp_path):
    queries = [f"question {i}" for i in range(50)]
    passages = [f"answer number {i} to it" for i in range(50)]
    positives = [[i] for i in range(50)]
    wanted = draw(queries, passages, positives, Shares(), "x")
    monkeypatch.setattr(splits, "KEPT", 1)
    monkeypatch.setattr(splits.paths, "cache", lambda name: tmp_path)
    assert draw(queries, passages, positives, Shares(), "x") == wanted
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(splits, "join_near", None)  # cannot be drawn again
    assert draw(queries, passages, positives, Shares(), "x") == wanted
    monkeypatch.undo()
    monkeypatch.setattr(splits, "KEPT", 1)
    monkeypatch.setattr(splits.paths, "cache", lambda name: tmp_path)
    for damage in (b"", file.read_bytes()[:-1], b"x" * 200):
        file.write_bytes(damage)
        assert draw(queries, passages, positives, Shares(), "x") == wanted
    draw(queries, passages, positives, Shares(seed=1), "x")
    draw(queries, passages, [*positives[:-1], [0]], Shares(), "x")
    draw([*queries[:-1], "another"], passages, positives, Shares(), "x")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("my_test-00000-of-00002", "test"),
        ("faq.validation", "dev"),
        ("Dev2", "dev"),
        ("contest", None),
        ("train_test", None),
        ("faq", None),
    ],
)
def test_splits_that_names_say(name, split):
    assert of_name(name) == split

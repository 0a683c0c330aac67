"""Blends of data sets: exact counts, rows kept whole, ids of corpora apart, splits the same."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.training.batches.clusters import Clusters
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.batches.mixture import Mixture, Source

few = settings(max_examples=12, deadline=None)


def score(number, query, passage):
    return np.float32(number * 100 + query + passage / 64)


def length(number, i):
    """Tokens of a text, fewer in later sets, so that widths differ."""
    return i % 5 + 1 + 8 * (4 - number)


def examples(
    number=0,
    rows=7,
    batch_size=4,
    negatives=2,
    positives=1,
    seed=5,
    passages=40,
    cluster=0,
    **options,
):
    """Set `number`: text i has `length(number, i)` tokens, all of them 1000·number + i + 1."""
    rng = np.random.default_rng([number, rows])
    queries = rng.permutation(rows).astype(np.int32)
    kept = [rng.choice(20, q % 3 + 1, replace=False) for q in queries]
    hard = [20 + rng.choice(20, q % 4, replace=False) for q in queries]

    def scores(lists):
        pairs = zip(queries, lists, strict=True)
        return Ragged.from_rows([[score(number, q, p) for p in row] for q, row in pairs], "f4")

    def tokenize(texts):
        made = [int(text.rpartition(".")[2]) for text in texts]
        return [np.full(length(number, i), 1000 * number + i + 1, np.int32) for i in made]

    table = Negatives(
        query_rows=queries,
        positive_rows=Ragged.from_rows(kept, np.int32),
        positive_scores=scores(kept),
        judged_rows=Ragged.from_rows(kept, np.int32),
        negative_rows=Ragged.from_rows(hard, np.int32),
        negative_scores=scores(hard),
        negative_ranks=None,
        teachers=("t",),
        negative_teachers=None,
        negative_ceilings=None,
        ceilings=None,
    )
    if cluster:
        vectors = rng.normal(size=(rows, 3)), rng.normal(size=(passages, 3))
        options["clusters"] = Clusters.of(table, *vectors, cluster)
    return Examples.build(
        table,
        [f"q{number}.{i}" for i in range(rows)],
        [f"p{number}.{i}" for i in range(passages)],
        tokenize,
        tokenize,
        batch_size=batch_size,
        num_negatives=negatives,
        pad_id=0,
        seed=seed,
        num_positives=positives,
        **options,
    )


def first(count):
    """Leaves the first `count` tokens of each text out of its pooling, but for its last."""
    return lambda tokens: np.asarray([min(count, len(ids) - 1) for ids in tokens], np.int32)


def mixture(sources, batch_size=4, seed=0, **options):
    return Mixture.build(sources, batch_size=batch_size, num_negatives=0, seed=seed, **options)


def three(batch_size=4, **options):
    """Sets of 7, 13 and 30 rows with 2, 0 and 3 negatives."""
    shapes = ((7, 2), (13, 0), (30, 3))
    return [
        Source(
            f"set{i}",
            examples(i, rows, batch_size, negatives, seed=i, **options),
            share=i + 1,
        )
        for i, (rows, negatives) in enumerate(shapes)
    ]


def owners(batch):
    """For each row of a batch: the number of its set and its query, from its first token."""
    return [divmod(int(token) - 1, 1000) for token in batch["query_tokens"][:, 0]]


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], name)
        assert value.dtype == right[name].dtype, name


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
@pytest.mark.parametrize(("positives", "cluster"), [(1, 0), (2, 0), (1, 2), (2, 8)])
def test_one_source_comes_as_examples_alone_give_it(batches, positives, cluster):
    guide = (np.arange(14.0).reshape(7, 2), np.arange(80.0).reshape(40, 2))
    alone = examples(
        positives=positives,
        cluster=cluster,
        teacher_scores=True,
        guide=guide,
        unpooled={"query": first(1)},
        skiplist={"passage": [3]},
    )
    made = mixture([Source("a", alone, 1.0)], batches=batches, steps=2100)
    for step in [*range(9), 255, 256, 300, 1023, 1024, 2099]:
        same(made.batch(step), alone.batch(step))
        same(made.batch(step, 1, 3), alone.batch(step, 1, 3))


@few
@given(
    data=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    size=st.integers(1, 6),
    epochs=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    batches=st.sampled_from(["homogeneous", "mixed"]),
    cluster=st.sampled_from([0, 1, 3]),
)
def test_every_row_comes_as_often_as_its_share_says(data, size, epochs, seed, batches, cluster):
    sources = [
        Source(f"set{i}", examples(i, rows, size, cluster=cluster * size), share)
        for i, (rows, share) in enumerate(data)
    ]
    made = mixture(sources, size, seed, batches=batches, epochs=epochs)
    seen = collections.Counter()
    for step in range(made.steps):
        of_batch = owners(made.batch(step))
        assert len(of_batch) == size
        if batches == "homogeneous":
            assert len({number for number, _ in of_batch}) == 1
        seen.update(of_batch)
    surplus = 0
    for i, (rows, share) in enumerate(data):
        times = [seen[i, query] for query in range(rows)]
        assert sum(times) == made.counts()[f"set{i}"]
        over = sum(times) - rows * share * epochs
        assert over >= 0
        # Batches are full, so some rows come once more than their share, or, where a batch is
        # larger than the set, all of them do.
        assert set(times) <= {sum(times) // rows, -(-sum(times) // rows)}
        if over == 0:
            assert set(times) == {share * epochs}
        if batches == "homogeneous":
            assert over < size
        surplus += over
    if batches == "mixed":
        assert surplus < size
    assert sum(seen.values()) == made.steps * size


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_a_source_ends_one_epoch_before_it_begins_the_next(batches):
    sources = [Source("a", examples(0, 8), 3), Source("b", examples(1, 12), 2)]
    made = mixture(sources, batches=batches)
    order = {0: [], 1: []}
    for step in range(made.steps):
        for number, query in owners(made.batch(step)):
            order[number].append(query)
    for number, rows in ((0, 8), (1, 12)):
        for first in range(0, len(order[number]), rows):
            assert sorted(order[number][first : first + rows]) == list(range(rows))


def largest_remainder(total, shares):
    """By hand, one unit at a time."""
    counts = [math.floor(total * share) for share in shares]
    while sum(counts) < total:
        lacks = [total * share - count for share, count in zip(shares, counts, strict=True)]
        counts[lacks.index(max(lacks))] += 1
    return counts


@few
@given(
    eighths=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    steps=st.integers(1, 12),
    batches=st.sampled_from(["homogeneous", "mixed"]),
)
def test_weights_are_exact_parts_of_all_examples(eighths, steps, batches):
    # Whole multiples of a power of two: this side's floats are exact, so there is one right answer.
    eighths[-1] += 64 - sum(eighths)
    shares = [eighth / 64 for eighth in eighths]
    sources = [Source(f"set{i}", examples(i, 3 + i, 4), share) for i, share in enumerate(shares)]
    made = mixture(sources, unit="weight", batches=batches, steps=steps)
    size = 4 if batches == "homogeneous" else 1
    expected = [size * count for count in largest_remainder(steps * 4 // size, shares)]
    assert list(made.counts().values()) == expected
    seen = collections.Counter(
        number for step in range(made.steps) for number, _ in owners(made.batch(step))
    )
    assert [seen[i] for i in range(len(shares))] == expected


@pytest.mark.parametrize(
    ("unit", "batches", "epochs", "steps", "expected"),
    [
        ("epochs", "homogeneous", 1.0, 0, 2 + 7 + 23),  # ceil(7/4), ceil(26/4), ceil(90/4)
        ("epochs", "mixed", 1.0, 0, 31),  # ceil(123/4)
        ("epochs", "homogeneous", 0.1, 0, 1 + 1 + 3),
        ("epochs", "mixed", 0.1, 0, 4),
        ("weight", "homogeneous", 1.0, 0, 13),  # ceil(50/4)
        ("weight", "mixed", 2.0, 0, 25),
        ("weight", "mixed", 2.0, 9, 9),
        ("epochs", "homogeneous", 2.0, 9, 9),
    ],
)
def test_the_length_of_a_stage(unit, batches, epochs, steps, expected):
    sources = three()
    if unit == "weight":
        weights = (0.5, 0.3, 0.2)
        pairs = zip(sources, weights, strict=True)
        sources = [dataclasses.replace(source, share=weight) for source, weight in pairs]
    made = mixture(sources, unit=unit, batches=batches, epochs=epochs, steps=steps)
    assert made.steps == expected
    assert sum(made.counts().values()) == 4 * expected


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
@pytest.mark.parametrize("unit", ["epochs", "weight"])
def test_a_stage_by_epochs_has_an_upper_bound(unit, batches):
    shares = (0.75, 0.25) if unit == "weight" else (1.0, 1.0)
    sources = [Source("a", examples(0, 36), shares[0]), Source("b", examples(1, 12), shares[1])]
    options = {"unit": unit, "batches": batches, "epochs": 2.0}
    whole = mixture(sources, **options)
    assert whole.steps == 24
    bounded = mixture(sources, **options, max_steps=8)
    assert bounded.steps == 8
    assert bounded.counts() == {"a": 24, "b": 8}  # the proportions stay
    for bound in (0, 24, 99):
        assert mixture(sources, **options, max_steps=bound).counts() == whole.counts()
    assert mixture(sources, **options, steps=30, max_steps=8).steps == 30


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
@pytest.mark.parametrize("unit", ["epochs", "weight"])
def test_a_stage_by_epochs_has_a_lower_bound(unit, batches):
    shares = (0.75, 0.25) if unit == "weight" else (1.0, 1.0)
    sources = [Source("a", examples(0, 36), shares[0]), Source("b", examples(1, 12), shares[1])]
    options = {"unit": unit, "batches": batches, "epochs": 2.0}
    raised = mixture(sources, **options, min_steps=48, max_steps=48)
    assert raised.steps == 48
    assert raised.counts() == {"a": 144, "b": 48}  # the proportions stay
    for bound in (0, 8, 24):
        assert mixture(sources, **options, min_steps=bound).steps == 24
    assert mixture(sources, **options, steps=8, min_steps=30).steps == 8


def test_a_share_is_the_number_as_written():
    # 1.1 · 10 is 11.000000000000002 in floats, which would be rounded up to a second batch.
    made = mixture([Source("a", examples(0, 10, 11), 1.1)], 11)
    assert made.steps == 1


def test_the_mix_is_even_over_a_long_stage():
    sources = [Source("a", examples(0, 300), 20), Source("b", examples(1, 300), 5)]
    made = mixture(sources, batches="mixed")
    half = collections.Counter()
    for step in range(made.steps // 2):
        half.update(number for number, _ in owners(made.batch(step)))
    # At most one round of some 1,024 units is only partly dealt.
    assert abs(half[0] - 3000) < 100
    assert abs(half[1] - 750) < 100


def by_hand(source, rows):
    """Passages of the first rows of a source's own order, from its batches alone."""
    batches = [source.examples.rows(step)[1].tolist() for step in range(-(-rows // 4))]
    return [row for batch in batches for row in batch][:rows]


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), positives=st.sampled_from([1, 2]))
def test_mixed_rows_keep_what_belongs_together(seed, positives):
    sources = three(positives=positives, teacher_scores=True)
    made = mixture(sources, seed=seed, batches="mixed")
    slots, done = positives + 3, [0, 0, 0]
    alone = [by_hand(source, made.counts()[source.name]) for source in made.sources]
    for step in range(made.steps):
        batch = made.batch(step)
        passages = batch["passage_ids"].reshape(4, slots)
        lengths = batch["passage_lengths"].reshape(4, slots)
        tokens = batch["passage_tokens"].reshape(4, slots, -1)
        longest_query, longest_passage = 0, 0
        for b, (number, query) in enumerate(owners(batch)):
            table = sources[number].examples.negatives
            (r,) = np.flatnonzero(table.query_rows == query)
            # Query.
            count = length(number, query)
            assert batch["query_lengths"][b] == count
            assert not batch["query_tokens"][b, count:].any()
            longest_query = max(longest_query, count)
            # Passages: some of its positives, then its best negatives, then nothing.
            real = [int(p) - 40 * number for p in passages[b] if p >= 0]
            assert all(0 <= p < 40 for p in real)
            kept = [p for p in real if p < 20]
            assert set(kept) <= set(table.positive_rows[r].tolist())
            assert len(set(kept)) == len(kept) == min(positives, len(table.positive_rows[r]))
            most = sources[number].examples.num_negatives
            hard = table.negative_rows[r][:most].tolist()
            assert real[len(kept) :] == hard
            assert passages[b, positives : positives + len(hard)].tolist() == [
                p + 40 * number for p in hard
            ]
            for g in range(slots):
                passage = int(passages[b, g]) - 40 * number
                there = passages[b, g] >= 0
                wanted = length(number, passage) if there else 1
                assert lengths[b, g] == wanted
                longest_passage = max(longest_passage, wanted)
                text = [1000 * number + passage + 1] * wanted if there else [0]
                assert tokens[b, g, : len(text)].tolist() == text
                assert not tokens[b, g, len(text) :].any()
                assert batch["teacher_scores"][b, g] == (
                    score(number, query, passage) if there else -np.inf
                )
            judged = {p + 40 * number for p in table.judged_rows[r].tolist()}
            assert set(batch["positive_ids"][b].tolist()) - {-1} == judged
            # And it is the next row of the set's own order, with what it would have drawn there.
            own = [p + 40 * number if p >= 0 else -1 for p in alone[number][done[number]]]
            done[number] += 1
            assert own + [-1] * (slots - len(own)) == passages[b].tolist()
        assert batch["query_tokens"].shape == (4, -(-longest_query // 16) * 16)
        assert tokens.shape[2] == -(-longest_passage // 16) * 16
        assert all(v.dtype == np.int32 for k, v in batch.items() if k != "teacher_scores")
    assert done == list(made.counts().values())


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_processes_build_parts_of_the_same_batch(batches):
    sources = three(teacher_scores=True)
    unpooled = {"query": first(2), "passage": first(1)}
    far = examples(3, 9, 4, 1, seed=8, teacher_scores=True, unpooled=unpooled)
    far = dataclasses.replace(far, skiplist={"query": [4]})
    made = mixture([*sources, Source("far", far, 2)], batches=batches)
    for step in range(0, made.steps, 3):
        whole = made.batch(step)
        for cuts in ((0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)):
            parts = [made.batch(step, a, b) for a, b in itertools.pairwise(cuts)]
            joined = {k: np.concatenate([part[k] for part in parts]) for k in whole}
            same(joined, whole)


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_lengths_are_known_without_the_batch(batches):
    made = mixture(three(), batches=batches)
    for step in range(made.steps):
        batch, lengths = made.batch(step), made.lengths(step)
        for side in ("query", "passage"):
            np.testing.assert_array_equal(lengths[side], batch[f"{side}_lengths"])


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_a_batch_depends_on_seed_and_step_alone(batches):
    first = mixture(three(), batches=batches)
    in_order = [first.batch(step) for step in range(first.steps)]
    second = mixture(three(), batches=batches)
    for step in np.random.default_rng(0).permutation(first.steps).tolist():
        same(second.batch(step), in_order[step])
    other = mixture(three(), seed=1, batches=batches)
    turns = [
        [n for step in range(b.steps) for n, _ in owners(b.batch(step))] for b in (first, other)
    ]
    assert turns[0] != turns[1]
    assert sorted(turns[0]) == sorted(turns[1])


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_the_iterator_begins_anywhere_and_resumes_where_it_was(batches):
    made = mixture(three(), batches=batches)
    found = list(made.dataset(5, 1, 3))
    assert len(found) == made.steps - 5
    for step, batch in enumerate(found, 5):
        same(batch, made.batch(step, 1, 3))
    iterator = iter(made.dataset(2, 0, 4))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    fresh = iter(made.dataset(2, 0, 4))
    fresh.set_state(state)
    same(next(fresh), made.batch(5))
    assert list(made.dataset(made.steps, 0, 4)) == []
    with pytest.raises(IndexError, match="step 99 of a stage of"):
        made.batch(99)


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_ids_are_apart_across_corpora_and_one_within(batches):
    sizes = {"a": 40, "b": 50, "c": 40, "d": 60}
    shared = {"a": "one", "b": "", "c": "one", "d": ""}
    sources = [
        Source(name, examples(i, 12, passages=sizes[name]), 1, shared[name])
        for i, name in enumerate(sizes)
    ]
    made = mixture(sources, batches=batches)
    begins = {0: 0, 1: 40, 2: 0, 3: 90}
    seen = set()
    for step in range(made.steps):
        batch = made.batch(step)
        slots = batch["passage_ids"].reshape(4, -1)
        for b, (number, _) in enumerate(owners(batch)):
            for g, passage in enumerate(slots[b]):
                if passage >= 0:
                    token = batch["passage_tokens"][b * slots.shape[1] + g, 0]
                    assert passage == token - 1 - 1000 * number + begins[number]
            judged = [p for p in batch["positive_ids"][b] if p >= 0]
            assert slots[b, 0] in judged
            seen.add(number)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_a_prompt_is_skipped_only_where_there_is_one(batches):
    unpooled = {"query": first(1), "passage": first(27)}
    plain, prompted = examples(0, 8), examples(1, 8, unpooled=unpooled)
    made = mixture([Source("plain", plain, 1), Source("prompted", prompted, 1)], batches=batches)
    for step in range(made.steps):
        batch = made.batch(step)
        per_row = len(batch["passage_unpooled"]) // 4
        for b, (number, query) in enumerate(owners(batch)):
            assert batch["query_unpooled"][b] == min(number, length(number, query) - 1)
            mine = slice(b * per_row, (b + 1) * per_row)
            expected = np.minimum(27 * number, batch["passage_lengths"][mine] - 1)
            assert batch["passage_unpooled"][mine].tolist() == expected.tolist()


def test_a_guide_of_another_width_is_for_homogeneous_batches():
    def guided(number, width):
        guide = (np.full((8, width), number + 1.0), np.full((40, width), -1.0 - number))
        return Source(f"set{number}", examples(number, 8, guide=guide), 1)

    made = mixture([guided(0, 3), guided(1, 3)], batches="mixed")
    for step in range(made.steps):
        batch = made.batch(step)
        for b, (number, _) in enumerate(owners(batch)):
            assert batch["query_guide"][b].tolist() == [number + 1.0] * 3
            for passage, vector in zip(
                batch["passage_ids"].reshape(4, 3)[b],
                batch["passage_guide"].reshape(4, 3, 3)[b],
                strict=True,
            ):
                assert vector.tolist() == [-1.0 - number if passage >= 0 else 0.0] * 3
    apart = mixture([guided(0, 3), guided(1, 5)])
    widths = {apart.batch(step)["query_guide"].shape[1] for step in range(apart.steps)}
    assert widths == {3, 5}
    with pytest.raises(InputError, match=r"'set0' is 3 wide and that of 'set1' 5.*'homogeneous'"):
        mixture([guided(0, 3), guided(1, 5)], batches="mixed")
    with pytest.raises(InputError, match="'bare' has none"):
        mixture([guided(0, 3), Source("bare", examples(2), 1)])


def test_homogeneous_batches_have_the_shapes_of_their_set():
    made = mixture(three())
    slots = {0: 3, 1: 1, 2: 4}
    for step in range(made.steps):
        batch = made.batch(step)
        number = owners(batch)[0][0]
        assert len(batch["passage_ids"]) == 4 * slots[number]


def test_what_cannot_be_blended_is_refused_by_name():
    a, b = Source("a", examples(0), 0.5), Source("b", examples(1), 0.4)

    def refused(sources, match, **options):
        with pytest.raises(InputError, match=match) as error:
            mixture(sources, **options)
        assert "\n" not in str(error.value)

    refused([], "no sources")
    refused([a, dataclasses.replace(b, name="a")], "two sources are named 'a'")
    refused([a, b], r"sum to 0.9, not to 1: 0.5 \(a\) \+ 0.4 \(b\)", unit="weight")
    for share in (0.0, -1.0, math.nan, math.inf):
        refused([a, dataclasses.replace(b, share=share)], f"'b' has share {share}")
    refused([a], "epochs=0", epochs=0)
    refused([a, Source("b", examples(1, batch_size=8), 1)], "'b' is built for batches of 8")
    refused(
        [a, Source("b", examples(1, positives=2), 1)],
        "num_positives is 1 in 'a' and 2 in 'b'",
    )
    refused(
        [a, Source("b", examples(1, teacher_scores=True), 1)], "for every set, but 'a' has none"
    )
    refused(
        [dataclasses.replace(a, corpus="c"), Source("b", examples(1, passages=50), 1, "c")],
        "'a' and 'b' .* have 40 and 50 passages",
    )


def test_more_passages_than_ids_are_refused():
    class Many:
        def __len__(self):
            return 2**30 + 1

    def large(name):
        made = examples()
        passages = dataclasses.replace(made.passages, place=Many())
        return Source(name, dataclasses.replace(made, passages=passages), 1)

    assert mixture([large("a")]).offsets == (0,)
    with pytest.raises(InputError, match=r"with 'b' the corpora have 2,147,483,650 passages"):
        mixture([large("a"), large("b")])

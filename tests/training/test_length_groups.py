"""Widths: plans have room for what they are chosen for, save padding, and change no number."""

import dataclasses

import jax
import jax.numpy as jnp
import loss_worker
import numpy as np
import pytest
from test_examples import build

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.batches import length_groups
from nvret_jax.training.batches.length_groups import Grouped, Groups, group, plans, profile
from nvret_jax.training.gradcache import Texts, chunk_rows, encode_sides


def test_a_profile_is_the_longest_of_each_rank_over_the_devices():
    lengths = np.array([5, 1, 9, 2, 8, 3])
    assert profile(lengths, 1).tolist() == [1, 2, 3, 5, 8, 9]
    assert profile(lengths, 2).tolist() == [2, 5, 9]


def padded(groups):
    return int(np.dot(groups.rows, groups.widths))


@pytest.mark.parametrize("price", [0.0, 9.0, 40.0])
def test_groups_hold_a_profile_at_the_least_cost(price):
    rng = np.random.default_rng(0)
    for _ in range(8):
        lengths = np.sort(np.minimum(rng.geometric(0.03, 11), 64))
        found = group(lengths, 128, price)
        assert sum(found.rows) == 11
        assert found.hold(lengths)
        assert not found.hold(lengths + 64)
        exact = -(-lengths // 8) * 8

        def cost(groups):
            total = price * len(groups.rows)
            for rows, width in zip(groups.rows, groups.widths, strict=True):
                size = chunk_rows(128, width, rows)
                total += -(-rows // size) * (size * width + 128 / 8)
            return total

        best = min(  # all of the ways to cut the texts into groups
            cost(Groups(tuple(np.diff([0, *ends]).tolist()), tuple(exact[np.array(ends) - 1])))
            for ends in ([*(i + 1 for i in range(10) if cut >> i & 1), 11] for cut in range(2**10))
        )
        assert cost(found) == pytest.approx(best, rel=1e-12)


def test_groups_of_many_lengths_are_few_and_save_most_of_the_padding():
    lengths = np.sort(np.random.default_rng(1).geometric(1 / 36, 160).clip(8, 256))
    found = group(lengths, 1024, 0.03 * lengths.sum())
    assert len(found.rows) <= 8
    assert padded(found) < 1.35 * lengths.sum()
    assert padded(found) < 0.5 * 160 * lengths.max()


def test_equal_lengths_are_one_group():
    assert group(np.full(7, 20), 64, 30.0) == Groups((7,), (24,))


def test_so_many_texts_that_not_each_can_end_a_group():
    lengths = np.sort(np.random.default_rng(1).geometric(1 / 36, 30_000).clip(8, 256))
    found = group(lengths, 16_384, 0.01 * lengths.sum())
    assert found.hold(lengths)
    assert padded(found) < 1.15 * lengths.sum()


def batches_of(count):
    lengths = np.random.default_rng(2).integers(1, 200, (count, 64))
    lengths[: count // 2] //= 2
    return np.sort(lengths, axis=1)


def planned(profiles, steps, **more):
    made = plans({"passage": profiles}, {"passage": 240}, 256, steps, **more)
    return [plan["passage"] for plan in made]


def test_plans_behind_the_first_are_roomier_and_the_last_holds_all_there_is():
    profiles = batches_of(30)
    first, second, last = planned(profiles, 31)
    assert all(first.hold(row) and second.hold(row) for row in profiles)
    assert padded(first) < padded(second) < padded(last)
    assert last == Groups((64,), (240,))


def test_a_sample_that_is_the_whole_stage_needs_no_roomier_plan():
    profiles = batches_of(30)
    assert planned(profiles, 30)[-1] == group(profiles.max(axis=0), 256, 16_384 / 30)


def test_a_long_stage_has_more_groups_and_a_tight_plan_for_its_smaller_batches():
    profiles = batches_of(30)
    short, long = planned(profiles, 31), planned(profiles, 100_000)
    assert len(long) == len(short) + 1 == 4
    assert len(long[1].rows) > len(short[0].rows)
    held = [long[0].hold(row) for row in profiles]
    assert held == [True] * 15 + [False] * 15
    assert padded(long[0]) < 0.7 * padded(long[1])


def test_both_sides_are_planned_together():
    """A tight plan is tight on both sides, so that two sides do not make four shapes."""
    profiles = batches_of(30)
    both = {"query": profiles, "passage": np.repeat(profiles, 3, axis=1)}
    made = plans(both, {"query": 240, "passage": 240}, 256, 100_000)
    assert len(made) == 4
    assert [set(plan) for plan in made] == [{"query", "passage"}] * 4
    assert all(len(plan["query"].rows) > 1 for plan in made[:2])


def test_without_chunks_a_side_has_one_width():
    made = plans({"passage": batches_of(30)}, {"passage": 240}, -1, 31)
    assert [plan["passage"].widths for plan in made] == [(104,), (200,), (240,)]


class Stage:
    """Batches of a set of examples, as a stage has them."""

    seed = 0

    def __init__(self, steps, examples):
        self.steps, self.batch, self.lengths = steps, examples.batch, examples.lengths
        self.longest = examples.longest


def grouped(chunk_tokens=4, parts=2, steps=12):
    return Grouped(Stage(steps, build()), parts, chunk_tokens)


def test_lengths_are_those_of_the_batch():
    examples = build()
    for step in range(3):
        for side, lengths in examples.lengths(step).items():
            np.testing.assert_array_equal(lengths, examples.batch(step)[f"{side}_lengths"])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_text_has_room_on_every_device(parts):
    batches = grouped(parts=parts)
    for step, batch in enumerate(batches.dataset(0, 0, 4)):
        for side, rows in (("query", 4), ("passage", 12)):
            groups = batches.plan(step)[side]
            assert batch.get(f"{side}_groups", groups) == groups
            assert (f"{side}_groups" in batch) == (len(groups.rows) > 1)
            assert sum(groups.rows) == rows // parts
            assert batch[f"{side}_tokens"].shape == (rows, groups.widths[-1])
            width = np.repeat(groups.widths, groups.rows)
            assert (profile(batches.batches.lengths(step)[side], parts) <= width).all()


def test_processes_take_the_same_groups(monkeypatch):
    monkeypatch.setattr(length_groups, "_BUCKET", 2)
    batches = grouped(steps=100_000)
    assert "passage_groups" in batches.batch(0, 0, 4)
    for step in range(4):
        whole, part = batches.batch(step, 0, 4), batches.batch(step, 2, 4)
        assert part.get("passage_groups") == whole.get("passage_groups")
        np.testing.assert_array_equal(part["passage_tokens"], whole["passage_tokens"][6:])


def test_what_fits_one_chunk_has_no_groups_and_a_planned_width():
    batches = grouped(chunk_tokens=320)
    shapes = set()
    for step in range(12):
        batch = batches.batch(step, 0, 4)
        assert not [name for name in batch if name.endswith("_groups")]
        shapes.add(tuple((name, batch[f"{name}_tokens"].shape) for name in ("query", "passage")))
    assert shapes == {(("query", (4, 8)), ("passage", (12, 8)))}


@pytest.mark.parametrize("chunk_tokens", [-1, 4, 320])
def test_a_long_stage_has_few_shapes(chunk_tokens):
    batches = grouped(chunk_tokens=chunk_tokens, steps=3000)
    made = {str(batches.plan(step)) for step in range(3000)}
    assert len(made) <= len(batches.plans[4, 12]) <= 4
    assert 0.3 < batches.useful <= 1


def test_a_batch_longer_than_all_of_the_sample_gets_the_width_of_the_longest_text():
    stage = Stage(3000, build())
    stage.longest = {"query": 8, "passage": 80}
    batches = Grouped(stage, 1, 4)
    lengths = stage.lengths(3)
    lengths["passage"][5:9] = 77
    stage.lengths = lambda step: lengths
    assert batches.plan(3)["passage"] == Groups((12,), (80,))


def test_a_source_that_the_sample_has_not_met_gets_the_width_of_the_longest_text():
    batches = grouped()
    batches.batches.lengths = lambda step: {"query": np.full(2, 3), "passage": np.full(4, 5)}
    assert batches.plan(3) == {"query": Groups((1,), (8,)), "passage": Groups((2,), (8,))}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("recompute", [True, False])
def test_groups_change_neither_vectors_nor_gradients(devices, drop, recompute):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices, and there are {len(jax.devices())}")
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, 16).astype(np.int32)
    groups = group(profile(lengths, devices) * 8, 8, 0.0)  # several, of widths 8, 16, …
    groups = dataclasses.replace(groups, widths=tuple(w // 8 for w in groups.widths))
    assert len(groups.rows) > 2
    tokens = rng.integers(0, 9, (16, 12)).astype(np.int32)
    weight = rng.normal(size=(16, 4)).astype(np.float32)
    with jax.set_mesh(mesh):
        split = mesh_lib.sharding(mesh, "batch")
        tokens, lengths = (jax.device_put(x, split) for x in (tokens, lengths))
        keys = jax.random.split(jax.random.key(0), 16) if drop else None
        keys = None if keys is None else jax.device_put(keys, split)

        key_data = None if keys is None else jax.random.key_data(keys)

        def encode(vectors, fixed, texts):
            own = None if texts.keys is None else jax.random.wrap_key_data(texts.keys)
            model = loss_worker.Words(vectors, pooled=True)
            return model(texts.tokens, texts.lengths, dropout_keys_b=own)

        def run(vectors, groups, chunk_tokens):
            texts = Texts(tokens, lengths, key_data)
            options = {"groups": [groups], "chunk_tokens": chunk_tokens, "mesh": mesh}
            options["recompute"] = recompute
            (emb,) = encode_sides(encode, vectors, {}, [texts], **options)
            return (emb * jax.device_put(weight, split)).sum(), emb

        grad = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=(1, 2))
        vectors = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
        (_, whole), expected = grad(vectors, None, -1)
        for chunk_tokens in (-1, 12):
            (_, found), gradient = grad(vectors, groups, chunk_tokens)
            np.testing.assert_allclose(np.asarray(found), np.asarray(whole), atol=1e-6)
            np.testing.assert_allclose(np.asarray(gradient), np.asarray(expected), atol=1e-5)

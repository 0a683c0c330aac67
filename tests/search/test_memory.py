"""What a search is said to hold against what it holds: arrays, XLA's account, and the budget."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.search.index import exact, memory, steps

ONE = mesh_lib.make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("tile", [None, 96])
def test_resident_bytes_are_those_of_the_arrays(dtype, tile):
    passages_nd = np.ones((5001, 24), dtype)
    index = exact.ExactIndex(passages_nd, mesh=ONE, tile=tile)
    index.search(np.ones((40, 24), np.float32), 7)
    assert index.plan.passages_bytes == sum(t.nbytes for t in index._tiles_nd)
    assert index.plan.tile == index.tile == index._tiles_nd[0].shape[0]
    assert index.plan.tiles == len(index._tiles_nd)
    assert not index.plan.streams


@pytest.mark.parametrize(
    ("tile", "block", "k", "dtype", "multiply"),
    [
        (131_072, 64, 100, jnp.float32, jnp.float32),
        (16_384, 64, 100, jnp.bfloat16, jnp.bfloat16),
        (16_384, 64, 100, jnp.bfloat16, jnp.float32),
        (8192, 32, 1000, jnp.float32, jnp.float32),
        (64, 16, 100, jnp.float32, jnp.float32),
        (8, 16, 20, jnp.float32, jnp.float32),
    ],
)
def test_score_bytes_cover_what_xla_allocates(tile, block, k, dtype, multiply):
    width = 32
    plan = memory.estimate(
        (10**7, width), dtype, block, k, 1, 1 << 34, streams=True, tile=tile, query_block=block,
        multiply=multiply,
    )  # fmt: skip
    where, whole = mesh_lib.sharding(ONE, "rows", None), mesh_lib.sharding(ONE)
    lists = jax.sharding.NamedSharding(ONE, jax.P(steps.ROWS))
    array = jax.ShapeDtypeStruct
    masks = {
        "ceiling_q": array((block,), jnp.float32, sharding=whole),
        "pairs_2m": array((2, 64), jnp.int32, sharding=whole),
    }
    with jax.set_mesh(ONE):
        stats = (
            steps.fold(ONE, k, tile, 10**7)
            .lower(
                tuple(array((1, block, k), t, sharding=lists) for t in (jnp.float32, jnp.int32)),
                array((1, block, tile), jnp.float32, sharding=lists),
                array((tile, width), dtype, sharding=where),
                array((), jnp.int32, sharding=whole),
                array((block, width), multiply, sharding=whole),
                masks,
            )
            .compile()
            .memory_analysis()
        )
    scratch = 4 * block * tile  # an argument and, in its place, a result
    assert stats.alias_size_in_bytes >= scratch
    assert stats.temp_size_in_bytes + scratch <= plan.score_bytes
    assert plan.score_bytes < 6 * 4 * block * (tile + 20 * k) + 4 * tile * width
    beside = plan.tile_bytes + plan.query_bytes + plan.list_bytes
    assert stats.argument_size_in_bytes - scratch <= beside + 4096


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([1, 1000, 123_457, 5_000_000, 2**31 - 1]),
    width=st.sampled_from([1, 256, 1024]),
    dtype=st.sampled_from(["float32", "float16"]),
    queries=st.sampled_from([0, 1, 2000, 500_000]),
    k=st.sampled_from([1, 100, 1000]),
    shards=st.sampled_from([1, 8, 64]),
    platform=st.sampled_from(["cpu", "gpu", "tpu"]),
    budget=st.integers(16, 36),
)
def test_every_plan_keeps_its_budget(n, width, dtype, queries, k, shards, platform, budget):
    asked = ((n, width), dtype, queries, min(k, n), shards)
    try:
        plan = memory.estimate(*asked, 1 << budget, platform=platform)
    except InputError as error:
        least = int(str(error).split("at least ")[1].split(" bytes")[0].replace(",", ""))
        assert least > 1 << budget
        assert memory.estimate(*asked, least, platform=platform).total <= least
        return
    assert plan.total <= 1 << budget
    assert plan.query_block % steps.PIECES == 0
    assert plan.tile * plan.tiles * shards >= n
    assert plan.query_block * plan.query_blocks * plan.passes >= queries
    assert plan.tile <= memory.tile_rows((n, width), dtype, platform)
    assert "\n" not in plan.describe()
    if not plan.streams:
        assert plan.passages_bytes >= n * width * 4 / shards


def test_more_memory_gives_larger_tiles_then_residence():
    sizes = []
    for budget in (1 << 22, 1 << 25, 1 << 28, 1 << 31):
        plan = memory.estimate((1_000_000, 128), np.float32, 1000, 10, 1, budget)
        sizes.append((plan.streams, plan.tile))
    assert [s for s, _ in sizes] == [True, True, True, False]
    assert sizes[0][1] < sizes[1][1] < sizes[2][1] <= platforms.limits("cpu").tile_rows


def test_automatic_budget_is_a_share_of_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 10 << 30)
    assert memory.budget_bytes(ONE, None) == memory.budget_bytes(ONE, 0)
    assert memory.budget_bytes(ONE, 0) == int(memory.HOST_SHARE * (10 << 30))
    assert memory.budget_bytes(ONE, 12345) == 12345
    with pytest.raises(InputError, match="-5 bytes"):
        memory.budget_bytes(ONE, -5)


def test_free_memory_is_less_than_this_machine_has():
    with open("/proc/meminfo") as lines:
        total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) << 10
    assert 0 < memory.host_free_bytes() < total


def test_a_line_says_what_is_held():
    plan = memory.estimate((5_000_000, 256), ml_dtypes.bfloat16, 2000, 100, 1, 3 << 29)
    line = plan.describe()
    for part in ("5,000,000 x 256 bfloat16 stream through 1 device", "39 tiles", "of 1.50 GiB"):
        assert part in line

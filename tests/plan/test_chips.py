"""Topologies by name, and what is said where one cannot be planned for."""

import pytest

from nvret_jax.errors import InputError
from nvret_jax.plan import chips


@pytest.mark.parametrize(
    ("topology", "parsed"),
    [("v5p:4x4x4", ("v5p", (4, 4, 4))), ("v6e:8x8", ("v6e", (8, 8))), ("h100:16", ("h100", (16,)))],
)
def test_a_topology_is_a_chip_and_a_layout(topology, parsed):
    assert chips.parse(topology) == parsed


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:", "v5e:4x", "v5e:0x4", ":4", "tpu"])
def test_an_unknown_topology_is_one_line_that_names_the_known_ones(topology):
    with pytest.raises(InputError) as caught:
        chips.parse(topology)
    line = str(caught.value)
    assert repr(topology) in line
    assert all(name in line for name in chips.CHIPS)


@pytest.mark.parametrize("topology", ["h100:12", "h100:2x4"])
def test_gpus_come_as_part_of_a_host_or_whole_hosts(topology):
    with pytest.raises(InputError, match="give their number, up to 8 or a multiple"):
        chips.parse(topology)


@pytest.mark.parametrize(
    ("topology", "module", "command"),
    [("v5e:4x4", "libtpu", "pip install libtpu"), ("h100:8", "jax_plugins", r"jax\[cuda13\]")],
)
def test_what_is_missing_is_named_with_how_to_install_it(topology, module, command, monkeypatch):
    monkeypatch.setattr(chips, "_there", lambda name: not name.startswith(module))
    with pytest.raises(InputError, match=command):
        chips.topology_mesh(topology)


def test_float32_takes_six_products_on_a_tpu_and_its_own_units_on_a_gpu():
    assert chips.CHIPS["v5e"].flops32 == pytest.approx(197e12 / 6)
    assert chips.CHIPS["h100"].flops32 == 67e12
    assert [chips.CHIPS[name].platform for name in ("v6e", "a100")] == ["tpu", "gpu"]

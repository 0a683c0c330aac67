"""Values of a wrong type in the Python interface: one line that says what is expected."""

from __future__ import annotations

import numpy as np
import pytest

import nvret_jax as nv
from nvret_jax.mesh import make_mesh

EYE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nv.LoraConfig(rank="x"), "lora: rank='x': expected a whole number from 1"),
        (lambda: nv.LoraConfig(rank=0), "lora: rank=0: expected a whole number from 1"),
        (lambda: nv.LoraConfig(alpha=-1), "lora: alpha=-1: expected a number above 0"),
        (lambda: nv.LoraConfig(dropout=1.0), "lora: dropout=1.0: expected a number"),
        (lambda: nv.LoraConfig(targets=5), "lora: targets=5: expected a tuple of 1 or more"),
        (lambda: nv.LoraConfig(targets="q_proj"), "targets='q_proj': expected a tuple"),
        (lambda: nv.LoraConfig(targets=()), "lora: targets=(): expected a tuple of 1 or more"),
        (lambda: nv.Mining(rule="perc_pos"), "mining.rule='perc_pos': expected a Rule"),
        (lambda: make_mesh(devices=[]), "mesh: devices is empty"),
        (lambda: nv.search(EYE, EYE, 2, mesh="x"), "None for all devices; got str"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(call, words):
    with pytest.raises(nv.InputError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_targets_may_be_a_list():
    assert nv.LoraConfig(targets=["q_proj"]) == nv.LoraConfig(targets=("q_proj",))

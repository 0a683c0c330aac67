"""Ids of texts in batches: copies are masked wherever they stand, on any mesh."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import virtual_devices

from nvret_jax import mesh as mesh_lib
from nvret_jax.data.ragged import Ragged
from nvret_jax.training.batches.text_ids import SetTexts, name_passages
from nvret_jax.training.loss.losses import Loss, batch_loss

WORKER = Path(__file__).parent / "same_text_worker.py"


def texts(queries, passages, judged):
    everything = np.arange(len(passages))
    lists = Ragged.from_rows(judged, np.int32)
    return SetTexts.of(queries, passages, np.arange(len(queries)), lists, everything)


def test_the_first_row_with_a_text_names_it_across_sets():
    one = texts(["q", "Q?", "r"], ["a", "b", "A."], [[0], [1], [2]])
    two = texts(["q"], ["c", "b", "q"], [[0]])
    first, second = name_passages([one, two], [0, 3])
    assert first.of_row.tolist() == [0, 1, 0]
    assert second.of_row.tolist() == [3, 1, 5]
    # Equal queries of both sets, and the passage that is the query itself.
    assert [row.tolist() for row in first.known] == [[0, 1, 3, 5], [0, 1, 3, 5], [0]]
    assert [row.tolist() for row in second.known] == [[0, 1, 3, 5]]


def test_rows_are_their_own_names_where_all_texts_differ():
    one = texts(["q0", "q1"], ["a", "b", "c"], [[2, 0], [1]])
    (names,) = name_passages([one], [0])
    assert names.of_row.tolist() == [0, 1, 2]
    assert [row.tolist() for row in names.known] == [[0, 2], [1]]


@pytest.mark.parametrize("method", ["gather", "ring"])
def test_the_copy_of_a_positive_is_no_negative_in_the_batch(method):
    """Rows 0 and 1 have one positive text under two ids: the loss falls below ln 2."""
    one = texts(["q0", "q1", "q2", "q3"], ["a", "A!", "b", "c"], [[0], [1], [2], [3]])
    (names,) = name_passages([one], [0])
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    batch = {"passage_ids": names.of_row, "positive_ids": names.known.padded(-1)}
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        value, metrics = jax.jit(lambda v, b: batch_loss(Loss(method=method), v, v, b, mesh=mesh))(
            vectors, batch
        )
    assert value < 1e-6 < np.log(2)
    assert metrics["accuracy"] == 1
    assert metrics["masked"] == 0.5


@pytest.mark.slow
def test_masks_and_mining_of_repeated_texts_on_one_and_eight_devices():
    environment = virtual_devices.environment(8)
    ran = subprocess.run(
        [sys.executable, str(WORKER)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]

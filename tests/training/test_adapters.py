"""Adapters through the whole loop: what is trained and stored, how a resumed run ends."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest
import tiny_backbones
from etils import epath
from flax import nnx

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models.encoder import Encoder, LoraConfig
from nvret_jax.training import loop
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.options import Training

QUERIES = ["wing flow", "heat", "the gene cell", "shock at speed"]
PASSAGES = [*tiny_backbones.TEXTS, "the body", "a plate of heat", "boundary layer flow", "cell"]
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.25, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_backbones.write(tmp_path_factory.mktemp("model") / "m", "nv-retriever")


def examples(encoder):
    """Query i belongs to passage i; half of them have a hard negative, so that slots are empty."""
    rows = Ragged.from_rows([[i] for i in range(4)], np.int32)
    negatives = Negatives(
        query_rows=np.arange(4, dtype=np.int32),
        positive_rows=rows,
        positive_scores=None,
        judged_rows=rows,
        negative_rows=Ragged.from_rows([[4], [], [6], []], np.int32),
        negative_scores=None,
        negative_ranks=None,
        teachers=("t",),
        negative_teachers=None,
        negative_ceilings=None,
        ceilings=None,
    )
    return Examples.build(
        negatives,
        QUERIES,
        PASSAGES,
        lambda texts: encoder.tokenize(texts, kind="query", max_length=16),
        lambda texts: encoder.tokenize(texts, kind="passage", max_length=16),
        batch_size=4,
        num_negatives=1,
        pad_id=encoder.tokenizer.pad_id,
        seed=0,
        unpooled={
            kind: functools.partial(encoder.unpooled, kind=kind) for kind in ("query", "passage")
        },
    )


class Batches:
    """The examples as a stage takes them; with `dies_at` the process is killed before that step."""

    def __init__(self, examples, steps, dies_at=None):
        self.examples, self.steps, self.dies_at = examples, steps, dies_at
        self.seed = examples.seed

    def batch(self, step, start, stop):
        return self.examples.batch(step, start, stop)

    def dataset(self, first, start, stop):
        for step in range(first, self.steps):
            if step == self.dies_at:
                raise Killed
            yield self.batch(step, start, stop)


class Killed(Exception):
    pass


def train(encoder, config, root, dies_at=None):
    batches = Batches(examples(encoder), config.steps, dies_at)
    return loop.train(encoder, [loop.Stage("train", config, lambda: batches)], places(root))


def options(**changes):
    values = {"steps": 12, "batch_size": 4, "num_negatives": 1, "learning_rate": 2e-2}
    values |= {"warmup": 0.0, "schedule": "constant", "checkpoint_every": 4, "log_every": 1}
    return Training(**values | changes)


def places(root):
    root = epath.Path(root)
    return loop.Places(root / "checkpoints", root / "metrics.jsonl", root / "tensorboard")


def losses(root):
    lines = (pathlib.Path(root) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def flat(encoder):
    return {
        path: (isinstance(value, nnx.LoRAParam), np.asarray(value[...]))
        for path, value in nnx.to_flat_state(nnx.split(encoder.model)[1])
    }


@pytest.mark.slow
def test_adapters_train_the_base_stays_and_a_resumed_run_ends_the_same(folder, tmp_path):
    encoder = Encoder.from_pretrained(str(folder), lora=LORA)
    tokens = encoder.tokenize(QUERIES, kind="query")
    assert set(encoder.unpooled(tokens, "query").tolist()) == {5}
    before = flat(encoder)
    trained = train(encoder, options(), tmp_path / "whole")
    after = flat(trained)
    moved = set()
    for path, (adapter, value) in before.items():
        same = value.tobytes() == after[path][1].tobytes()
        assert adapter or same, path
        if not same:
            moved.add(path[-1])
    assert len(moved) == 6
    values = losses(tmp_path / "whole")
    assert np.isfinite(values).all()
    assert np.mean(values[-3:]) < np.mean(values[:3]) - 0.1

    # Killed after step 4, and gone on with from a model read anew.
    with pytest.raises(Killed):
        train(encoder, options(), tmp_path / "cut", dies_at=6)
    fresh = Encoder.from_pretrained(str(folder), lora=LORA)
    again = flat(train(fresh, options(), tmp_path / "cut"))
    for path, (_, value) in after.items():
        np.testing.assert_array_equal(again[path][1], value, str(path))
    assert losses(tmp_path / "cut") == values

    # What a checkpoint holds, and that it is enough.
    loaded = loop.load_trained(
        Encoder.from_pretrained(str(folder), lora=LORA), epath.Path(tmp_path / "whole/checkpoints")
    )
    np.testing.assert_array_equal(
        loaded.encode(QUERIES, kind="query"), trained.encode(QUERIES, kind="query")
    )


def test_a_checkpoint_holds_the_adapters_and_nothing_of_the_base(folder, tmp_path):
    from orbax.checkpoint import v1 as ocp

    encoder = Encoder.from_pretrained(str(folder), lora=LORA)
    train(encoder, options(steps=1), tmp_path)
    with ocp.training.Checkpointer((tmp_path / "checkpoints" / "train").resolve()) as checkpoints:
        metadata = checkpoints.checkpointables_metadata(1).metadata
    names = set(metadata["params"]["backbone"]["layers"])
    assert set(metadata["params"]) == {"backbone"}
    assert set(metadata["params"]["backbone"]) == {"layers"}
    stems = ("query", "value", "down")
    assert names == {f"{stem}_lora_{side}" for stem in stems for side in "ab"}
    adapters = sum(adapter for adapter, _ in flat(encoder).values())
    # Adam's two moments of each, and its counters.
    sizes = [tuple(leaf.shape) for leaf in metadata["optimizer"]]
    assert sum(size != () for size in sizes) == 2 * adapters


@pytest.mark.slow
def test_dropout_of_adapters_alone_gives_the_steps_keys(folder, tmp_path):
    """B begins as zero, so that the first loss is the same with any dropout; the second is not."""
    found = []
    for dropout in (0.0, 0.9):
        lora = dataclasses.replace(LORA, dropout=dropout)
        encoder = Encoder.from_pretrained(str(folder), lora=lora)
        root = tmp_path / str(dropout)
        train(encoder, options(steps=2), root)
        found.append(losses(root))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_empty_slots_and_texts_that_are_all_prompt_keep_a_token(folder):
    encoder = Encoder.from_pretrained(str(folder), passage_prompt=tiny_backbones.QUERY)
    batch = examples(encoder).batch(0)
    assert (batch["passage_ids"] == -1).any()
    assert (batch["passage_unpooled"] < batch["passage_lengths"]).all()
    real = batch["passage_lengths"] > 5
    assert set(batch["passage_unpooled"][real].tolist()) == {5}

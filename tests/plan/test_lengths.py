"""A training step planned at the lengths of the texts it trains on."""

import collections
import shutil

import command
import jax
import numpy as np
import pytest
import tiny_models

from nvret_jax import config as config_lib
from nvret_jax import mesh as mesh_lib
from nvret_jax.config.sets import MAIN_SET
from nvret_jax.errors import InputError
from nvret_jax.options import blocks
from nvret_jax.plan import lengths, models, training
from nvret_jax.training.batches.length_groups import Grouped
from nvret_jax.training.options import Training

BATCH, NEGATIVES, CHUNK = 32, 3, 128


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Passages of 4 words, one in eight of 40, which are cut; queries of 3 words."""
    folder = tmp_path_factory.mktemp("lengths")
    tiny_models.write(folder / "bert")
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["apple", "river", "stone", "cloud"]

    def text(count):
        return " ".join(rng.choice(words, count))

    rows = range(256)
    corpus = [f'{{"_id": "p{i}", "text": "{text(40 if i % 8 == 0 else 4)}"}}\n' for i in rows]
    queries = [f'{{"_id": "q{i}", "text": "{text(3)}"}}\n' for i in rows]
    (data / "corpus.jsonl").write_text("".join(corpus))
    (data / "queries.jsonl").write_text("".join(queries))
    judged = "".join(f"q{i}\tp{i}\t1\n" for i in rows)
    (data / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    made = config_lib.base()
    made.student.model = str(folder / "bert")
    made.student.query_length, made.student.passage_length = 16, 40
    made.data.train = f"beir:{data}"
    made.train.update({"batch_size": BATCH, "num_negatives": NEGATIVES, "steps": 2000})
    made.train.chunk_tokens = CHUNK
    return made


@pytest.fixture(scope="module")
def student(config):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    return models.read(config.student, mesh, key="student"), mesh


def test_lengths_are_those_of_the_models_own_tokenizer(config, student):
    found = lengths.read(config, student[0], [MAIN_SET], {})
    assert found.longest == {"query": 16, "passage": 40}
    assert set(found.query) == {found.query[0]}
    assert len(found.passage) == 256
    long = found.passage > 2 * np.median(found.passage)
    assert long.sum() == 32
    assert found.positive.mean() == found.passage.mean()


def test_most_steps_of_a_run_have_the_planned_widths(config, student):
    found = lengths.read(config, student[0], [MAIN_SET], {})
    drawn = lengths.Drawn(found, BATCH, 1, NEGATIVES, 0, 2000)
    usual, useful = lengths.usual(drawn, 1, CHUNK, "cpu")
    run = Grouped(drawn, 1, CHUNK)  # as the loop makes it, on this platform
    shares = collections.Counter(tuple(sorted(run.plan(step).items())) for step in range(2000))
    assert shares[tuple(sorted(usual.items()))] > 0.45 * 2000  # of at most four
    assert useful == run.useful
    assert len(usual["passage"].rows) > 1
    assert usual["passage"].widths[-1] >= found.passage.max()
    assert sum(usual["passage"].rows) == BATCH * (1 + NEGATIVES)


def test_an_accelerator_has_fewer_widths_where_a_stage_is_short(config, student):
    """What a compilation costs is counted for the planned chip, not for the one that plans."""
    drawn = lengths.Drawn(
        lengths.read(config, student[0], [MAIN_SET], {}), BATCH, 1, NEGATIVES, 0, 60
    )
    on_cpu, on_tpu = (lengths.usual(drawn, 1, CHUNK, p)[0]["passage"] for p in ("cpu", "tpu"))
    assert len(on_tpu.rows) < len(on_cpu.rows)


@pytest.mark.slow
def test_a_step_at_usual_lengths_computes_their_tokens(config, student):
    sketch, mesh = student
    found = lengths.read(config, sketch, [MAIN_SET], {})
    long = training.train_step(sketch, blocks.read(Training, config.train), mesh)
    usual = training.train_step(sketch, blocks.read(Training, config.train), mesh, lengths=found)
    assert usual.flops.total < 0.6 * long.flops.total
    assert usual.needed < 0.6 * long.needed
    # Chunks are computed again, and the loss and unfilled chunks come on top.
    assert usual.flops.total == pytest.approx(4 / 3 * usual.needed, rel=0.15)
    assert usual.memory.peak <= long.memory.peak
    assert "% of the tokens computed are text" in usual.notes[0]


def test_a_model_known_by_its_sizes_has_no_tokenizer(config):
    block = config.student.copy_and_resolve_references()
    block.model = "intfloat/e5-large-v2"
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(
        InputError, match=r"needs its tokenizer, which is not on this machine.*--plan_data"
    ):
        lengths.read(config, models.read(block, mesh, key="student"), [MAIN_SET], {})


def test_sets_are_read_as_they_are_mined(config, student, tmp_path):
    """With their own split and source; the run's data set stays out where a stage leaves it out."""
    data = tmp_path / "data"
    shutil.copytree(config.data.train.partition(":")[2], data)
    (data / "qrels" / "train.tsv").rename(data / "qrels" / "other.tsv")
    queries = [f'{{"_id": "q{i}", "text": "apple river stone cloud apple"}}\n' for i in range(256)]
    (data / "queries.jsonl").write_text("".join(queries))
    own = config.copy_and_resolve_references()
    config_lib.add_set(own, "second", f"beir:{data}", split="other")
    second = lengths.read(own, student[0], ["second"], {})
    both = lengths.read(own, student[0], [MAIN_SET, "second"], {})
    assert set(second.query) == {7}  # with two special tokens
    assert set(both.query) == {5, 7}
    assert (second.examples, both.examples) == (256, 512)


def test_plan_data_without_a_plan_is_refused():
    found = command.inside("--config=configs/quickstart.py", "--workdir=unused", "--plan_data")
    assert found.status == 2
    assert found.error == "error: --plan_data: nothing is planned without --plan=TOPOLOGY"

"""Several training sets, stages and rounds: each part is made from what it says, and resumes."""

import json
import re

import numpy as np
import pytest
import recipe_project
import tiny_project

from nvret_jax import config as config_lib
from nvret_jax import pipeline
from nvret_jax.api import Encoder
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import sets
from nvret_jax.data.load import load_dataset
from nvret_jax.mining.negatives import Negatives
from nvret_jax.options import blocks
from nvret_jax.pipeline import report as report_stage
from nvret_jax.pipeline import train as train_stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search.store import EmbeddingStore


@pytest.fixture(scope="module")
def staged(pristine, tmp_path_factory):
    """(config, workdir) of a finished run of two stages over two sets."""
    config = recipe_project.two_stages(pristine)
    workdir = tmp_path_factory.mktemp("staged") / "w"
    pipeline.run(config, str(workdir))
    return config, workdir


def run_of(config, workdir):
    return Run(config, Workdir.open(str(workdir), config.to_dict(), write=False))


def batches_of(config, workdir, name):
    run = run_of(config, workdir)
    return train_stage.batches(train_stage.inputs_at(run), run.training_stages, name)


@pytest.mark.slow
def test_each_stage_leaves_its_checkpoints_and_its_lines(staged):
    _, workdir = staged
    lines = tiny_project.metrics(workdir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["stage"] for line in lines if "loss" in line] == ["first"] * 4 + ["second"] * 4
    for stage in ("first", "second"):
        assert (workdir / "checkpoints" / stage / "4").is_dir()
    assert (workdir / "export" / "model.safetensors").exists()


def test_a_set_is_mined_by_its_own_rule_in_its_own_folder(staged):
    config, workdir = staged
    data = load_dataset(config.data.train)
    table = Negatives.read(workdir / "sets/other/negatives/dev.parquet", data.queries, data.corpus)
    assert len(table) == 6
    assert set(table.negative_rows.counts.tolist()) == {2}
    assert np.all(np.isinf(table.ceilings))  # naive has none
    main = Negatives.read(workdir / "negatives/train.parquet", data.queries, data.corpus)
    assert np.all(np.isfinite(main.ceilings))


def test_stages_learn_from_different_teachers(pristine, tmp_path):
    """As docs/recipes.md shows: the same queries, mined by BM25 for the first stage."""
    config = recipe_project.config(pristine)
    config_lib.add_teacher(config, "bm25", "bm25:")
    config_lib.add_set(config, "words", config.data.train, teachers=("bm25",))
    config_lib.add_stage(config, "first", sets=("words",))
    config_lib.add_stage(config, "second", sets=("train",))
    config.stages = ("embed", "search", "mine", "train")
    pipeline.run(config, str(tmp_path / "w"), stages=("embed", "search", "mine"))
    data, tables = load_dataset(config.data.train), {}
    for name, at in (("words", "sets/words/"), ("train", "")):
        file = tmp_path / "w" / at / "negatives/train.parquet"
        tables[name] = Negatives.read(file, data.queries, data.corpus)
    assert tables["words"].teachers == ("bm25",)
    assert tables["train"].teachers == ("teacher",)
    for stage, of in (("first", "words"), ("second", "train")):
        mixture, table = batches_of(config, tmp_path / "w", stage), tables[of]
        assert mixture.counts() == {of: 4 * 8}
        numbers, passages = mixture.sources[0].examples.rows(1)
        wanted = table.negative_rows.take(numbers).padded(-1, 3)
        assert passages[:, 1:].tolist() == wanted.tolist()


def test_the_report_speaks_of_every_set_and_stage(staged):
    config, workdir = staged
    page = " ".join(re.sub(r"<[^>]*>", " ", (workdir / "report.html").read_text()).split())
    main = f"on data with hard negatives that {config.teacher.model} ranked and the rule perc_pos"
    assert f"trained in 2 stages {main} kept and on other (data) with hard" in page
    assert "the rule naive kept." in page
    assert "rule naive: 12 hard negatives for 6 queries" in page
    assert re.search(r"rule perc_pos[^:]*: \d+ hard negatives for 24 queries", page)


def test_sets_that_share_a_name_with_data_are_told_apart(pristine, tmp_path):
    config = recipe_project.two_stages(pristine)
    for name in ("data", "third"):  # the folder of all of them is called data, too
        config_lib.add_set(config, name, config.data.train)
    config.train_stages.second.sets = ("train", "other", "data", "third")
    titled = report_stage._titled(run_of(config, tmp_path / "w"))
    assert list(titled) == ["data", "data (data)", "other (data)", "third (data)"]


def test_a_sets_prompt_stands_before_its_queries_alone(staged):
    config, workdir = staged
    mixture = batches_of(config, workdir, "second")
    prompt = run_of(config, workdir).student.encoder.tokenize(["the wing"])[0][1:-1].tolist()
    starts = {True: 0, False: 0}
    data = load_dataset(config.data.train)
    judged = set(data.positives("dev", 1))
    ids = np.array(data.corpus.ids)
    of_dev = {p for q in judged for p in data.positives("dev", 1)[q]}
    for step in range(mixture.steps):
        batch = mixture.batch(step)
        group = len(batch["passage_ids"]) // len(batch["query_lengths"])
        for tokens, positive in zip(
            batch["query_tokens"], batch["passage_ids"][::group], strict=True
        ):
            is_dev = ids[positive] in of_dev
            assert (tokens[1:3].tolist() == prompt) == is_dev
            starts[is_dev] += 1
    assert starts == {True: 8, False: 24}  # a quarter, three quarters of 4 × 8


def test_a_finished_recipe_has_nothing_left_to_do(staged, capsys):
    config, workdir = staged
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    pipeline.run(config, str(workdir))
    printed = capsys.readouterr().out
    assert printed.count("up to date") == len(config.stages)
    assert "making" not in printed
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "remade", "kept"),
    [
        (
            lambda c: c.train_stages.second.update({"learning_rate": 1e-4}),
            ["checkpoints", "evaluation/data.json", "export"],
            ["sets/other/negatives/dev.parquet", "negatives/train.parquet"],
        ),
        (
            lambda c: c.sets.other.update({"rule": "shifted"}),
            ["sets/other/negatives/dev.parquet", "checkpoints"],
            ["negatives/train.parquet", "sets/other/candidates/teacher.parquet"],
        ),
        (
            lambda c: c.mining.update({"percent": 0.9}),
            ["negatives/train.parquet", "checkpoints"],
            ["sets/other/negatives/dev.parquet"],
        ),
        (
            lambda c: c.sets.other.update({"query_prompt": "a "}),
            ["checkpoints"],
            ["negatives/train.parquet", "sets/other/negatives/dev.parquet"],
        ),
        (
            lambda c: c.result.update({"pick": "best"}),
            ["evaluation/data.json", "export"],
            ["checkpoints"],
        ),
        (lambda c: c.train_stages.second.update({"keep": 5}), [], ["checkpoints", "export"]),
    ],
)
def test_a_change_makes_again_what_depends_on_it(staged, capsys, change, remade, kept):
    config, workdir = staged
    config = config.copy_and_resolve_references()
    change(config)
    pipeline.run(config, str(workdir), dry_run=True)
    state = {}
    for line in capsys.readouterr().out.splitlines():
        _, name, verdict = line.split(maxsplit=2)
        state[name] = verdict
    assert [name for name in remade if state[name] == "up to date"] == []
    assert [name for name in kept if state[name] != "up to date"] == []


def test_stages_draw_differently_and_the_same_again(staged):
    config, workdir = staged
    config = config.copy_and_resolve_references()
    config.train_stages.second.sets = ("train",)
    config.train_stages.second.shares = ()
    config.train_stages.second.share_unit = "epochs"
    config.train_stages.second.batches = "homogeneous"
    first, second, again = (
        batches_of(config, workdir, name) for name in ("first", "second", "first")
    )
    same = [
        np.array_equal(first.batch(i)["query_tokens"], again.batch(i)["query_tokens"])
        for i in range(4)
    ]
    assert all(same)
    drawn = [
        np.array_equal(first.batch(i)["passage_ids"], second.batch(i)["passage_ids"])
        for i in range(4)
    ]
    assert not all(drawn)


def test_data_of_sets_alone_and_rounds_of_mining(pristine, tmp_path):
    config = recipe_project.config(pristine, steps=2)
    source = config.data.train
    config.data.train = ""
    from nvret_jax.config import add_set

    add_set(config, "a", source, teacher_query_prompt="of ")
    add_set(config, "b", source, split="dev")
    config.rounds = 2
    pipeline.run(config, str(tmp_path / "w"))
    between = tmp_path / "w/rounds/1"
    assert not (between / "evaluation").exists()
    # The second round's teacher is what the first round trained.
    trained = Encoder.from_pretrained(str(between / "export"))
    texts = load_dataset(source).corpus.texts
    expected = trained.encode(texts, max_length=24)
    stored = EmbeddingStore.open(tmp_path / "w/sets/a/embeddings/teacher/data/passages")
    np.testing.assert_allclose(np.asarray(stored[:]), expected, atol=1e-6)
    start = Encoder.from_pretrained(config.student.model).encode(texts, max_length=24)
    assert np.abs(start - expected).max() > 1e-3
    told = json.loads((tmp_path / "w/evaluation/data.json").read_text())
    assert told["encoder"] == config.student.model  # what was there before the first round


def test_the_config_of_a_set_has_its_values_over_the_runs(pristine):
    config = recipe_project.two_stages(pristine)
    config.sets.other.update({"percent": 0.8, "teacher_query_prompt": "q ", "max_queries": 5})
    own = sets.set_config(config, "other")
    assert (own.data.train_split, own.data.max_queries) == ("dev", 5)
    assert (own.mining.rule, own.mining.percent, own.mining.num_negatives) == ("naive", 0.8, 2)
    assert own.mining.anchor == config.mining.anchor
    assert (own.teacher.query_prompt, own.student.query_prompt) == ("q ", "the wing ")
    assert config.teacher.query_prompt is None  # the run's own is as it was
    assert own.stages == ("embed", "search", "mine")


def test_a_set_that_no_stage_uses_is_not_mined(pristine):
    config = recipe_project.two_stages(pristine)
    config.train_stages.second.sets = ("other",)
    config.train_stages.first.sets = ("other",)
    assert sets.used_sets(config) == ["other"]


def test_encoders_of_the_same_model_are_loaded_once(staged):
    config, workdir = staged
    run = run_of(config, workdir)
    sides = [part.encoders["teacher"] for part in run.sets.values()]
    assert sides[0].encoder.model is not None
    assert len(sides) == 2
    assert len({side.key for side in sides}) == 1
    run.sets["other"].encoders["teacher"].encoder  # noqa: B018
    run.student.encoder  # noqa: B018
    assert len(run.loading.models) == 1


def test_a_set_replaces_what_it_says_and_leaves_the_rest(tmp_path):
    config = recipe_project.config(tmp_path)
    config_lib.add_teacher(config, "second", "m")
    config.mining.teachers = ("teacher", "second")
    config_lib.add_set(
        config, "own", "beir:x", percent="auto", query_length=8, teacher_query_prompt="find: "
    )
    own = sets.set_config(config, "own")
    assert (own.data.train, own.data.train_split, own.data.dev_split) == ("beir:x", "train", "")
    assert (own.mining.percent, own.mining.margin) == ("auto", config.mining.margin)
    assert (own.student.query_length, own.student.passage_length) == (8, 24)
    assert own.teacher.query_prompt == own.teachers.second.query_prompt == "find: "
    assert config.teacher.query_prompt is None
    names = sets.key_names(config, "own")
    assert names["mining.percent"] == "sets.own.percent"
    assert names["teachers.second.query_prompt"] == "sets.own.teacher_query_prompt"
    assert "mining.teachers" not in names
    every = {one.replaces for _, one in blocks.entries(config_lib.TrainingSet)}
    known = {
        *config_lib.flat_keys(config),
        *(f"{{teacher}}.{kind}_prompt" for kind in ("query", "passage")),
    }
    assert every <= known

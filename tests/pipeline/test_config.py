"""Every mistake in one message; smoke shrinks; every file in configs/ is valid."""

import importlib.util
import pathlib

import command
import pytest

from nvret_jax import config as config_lib
from nvret_jax.config import checks
from nvret_jax.errors import InputError
from nvret_jax.mining.options import Mining
from nvret_jax.options import blocks
from nvret_jax.training.options import Training

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path, arg=""):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg), module


def test_the_default_is_valid_and_the_papers():
    config = config_lib.base()
    assert checks.mistakes(config) == []
    checks.validate(config)
    assert (config.mining.rule, config.mining.percent) == ("perc_pos", 0.95)


def filled(config):
    """Names data where the launch line does."""
    config.data.test = config.data.test or "pydocs:"
    if set(config.stages) - {"evaluate"}:
        config.data.train = config.data.train or "pydocs:"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_config_file_is_valid_and_carries_its_launch_line(path):
    config, module = load(path)
    filled(config)
    checks.validate(config)
    assert f"--config=configs/{path.name}" in module.__doc__
    small, _ = load(path, "smoke")
    filled(small)
    checks.validate(small)
    assert small.train.steps <= 20
    assert small.name != config.name
    with pytest.raises(InputError, match="':tiny'; expected ':smoke'"):
        load(path, "tiny")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", -1, "seed=-1"),
        ("stages", ("embed", "dance"), "dance"),
        ("stages", (), "stages=(): expected a tuple of 1 or more items"),
        ("data.train", "", "data.train=''"),
        ("data.min_relevance", 0, "data.min_relevance=0"),
        ("teacher.dtype", "float8", "float32, bfloat16"),
        ("student.passage_length", 2, "student.passage_length=2"),
        (
            "student.prompt_in_pooling",
            "first",
            "prompt_in_pooling='first': expected one of all, none",
        ),
        ("student.lora_rank", -1, "student.lora_rank=-1"),
        ("student.lora_alpha", 0.0, "student.lora_alpha=0.0"),
        ("student.lora_dropout", 1.0, "student.lora_dropout=1.0"),
        ("student.lora_targets", (), "student.lora_targets=()"),
        ("student.lora_targets", ("q_proj", 3), "student.lora_targets=('q_proj', 3): expected a"),
        ("mesh.fsdp", 0, "mesh.fsdp=0"),
        ("search.backend", "cpu", "auto, device, faiss"),
        ("search.depth", 0, "search.depth=0"),
        ("mining.rule", "perc", "perc_pos"),
        ("mining.percent", 0.0, "mining.percent=0.0"),
        ("mining.anchor", "median", "min, max, mean"),
        ("mining.num_negatives", 0, "mining.num_negatives=0"),
        ("train.num_negatives", 9, "mining.num_negatives=4 are mined"),
        ("train.batch_size", 0, "train.batch_size=0"),
        ("train.temperature", 0.0, "train.temperature=0.0"),
        ("train.schedule", "step", "linear, cosine, constant"),
        ("train.warmup", 1.0, "train.warmup=1.0"),
        ("train.dropout", 1.0, "train.dropout=1.0"),
        ("evaluation.depth", 10, "evaluation.depth=10"),
        ("export.dtype", "bfloat16", "float32, float16"),
    ],
)
def test_a_bad_value_is_named(key, value, words):
    config = config_lib.base()
    block, _, leaf = key.rpartition(".")
    target = config[block] if block else config
    target[leaf] = value
    with pytest.raises(InputError) as error:
        checks.validate(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_adapters_are_new_or_trained_and_a_teacher_takes_trained_ones():
    config = config_lib.base()
    config.teacher.adapter = "folder"
    config.student.lora_rank = 8
    checks.validate(config)
    config.student.adapter = "folder"
    with pytest.raises(
        InputError, match=r"student\.lora_rank=8: new adapters, but 'adapter' names"
    ):
        checks.validate(config)
    config.student.lora_rank = 0
    checks.validate(config)
    config_lib.add_teacher(config, "second", "m", lora_rank=2)
    with pytest.raises(InputError, match=r"teachers\.second\.lora_rank: no such key"):
        checks.validate(config)


def test_all_mistakes_come_in_one_message():
    config = config_lib.base()
    config.mining.rule = "best"
    config.train.temperature = -1.0
    config.mesh.tensor = 0
    with pytest.raises(InputError) as error:
        checks.validate(config)
    for words in ("mining.rule='best'", "train.temperature=-1.0", "mesh.tensor=0"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_words_of_choices_are_those_that_modules_act_on():
    from nvret_jax.mining.exclude import exclusion
    from nvret_jax.mining.options import OWN_TEXT
    from nvret_jax.models import pooling
    from nvret_jax.models.options import POOLINGS
    from nvret_jax.training.loss import losses
    from nvret_jax.training.loss.options import TERMS

    assert set(OWN_TEXT) == {*exclusion.FORMS, "off"}
    assert POOLINGS == pooling.MODES
    assert set(TERMS) == set(losses._READ)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_flags_and_exits_with_0(flag):
    result = command.inside(flag)
    assert (result.status, result.stderr) == (0, "")
    for shown in ("--config=FILE", "--config.KEY=VALUE", "--workdir=DIR", "--stages=", "--plan="):
        assert f"  {shown}" in result.stdout
    assert "convert SOURCE TARGET" in result.stdout


def test_values_of_a_stage_can_be_set_like_those_it_is_a_copy_of():
    config = config_lib.base()
    block = config_lib.add_stage(config, "second")
    for mine, theirs in ((block, config.train), (block.loss, config.train.loss)):
        kinds = {key: mine.get_type(key) for key in mine}
        assert kinds == {key: theirs.get_type(key) for key in theirs if key != "stages"}
    block.loss.teacher_temperature = 0.5  # unset in both until here
    assert config.train.loss.teacher_temperature is None


def test_what_conflicts_inside_a_block_takes_no_part_in_later_checks():
    config = config_lib.base()
    config_lib.add_stage(config, "only", loss={"terms": ("query_to_query",)})
    config.mining.max_rank = 2
    config.mining.exclude.update({"document_separator": "#", "document_map": "map.tsv"})
    assert [line.split("=")[0] for line in checks.mistakes(config)] == [
        "mining.max_rank",
        "mining.exclude.document_map",
        "train_stages.only.loss.terms",
    ]
    sound = checks.with_defaults(config)
    blocks.read(Mining, sound.mining)  # each raises what it does not take
    blocks.read(Training, sound.train_stages.only)
    assert (sound.mining.max_rank, sound.mining.exclude.document_map) == (0, "")
    assert sound.mining.exclude.document_separator == "#"
    assert blocks.read(Mining, sound.mining).exclude.document_map is None
    assert config.mining.max_rank == 2
    # A default, too, may be above the temperature where learning starts.
    block = config.train_stages.only
    block.temperature, block.loss.temperature_learning_rate = 0.001, 0.1
    assert checks.with_defaults(config) is None

"""Recipes that cannot be: each mistake is named by its key, all at once, before any work."""

import pathlib
import textwrap

import command
import pytest
import recipe_project

from nvret_jax import config as config_lib
from nvret_jax import pipeline

FIRST, SECOND = "train_stages.first", "train_stages.second"


def change(key, value):
    def apply(config):
        block, leaf = config, key
        while "." in leaf:
            head, leaf = leaf.split(".", 1)
            block = block[head]
        block[leaf] = value

    return apply


def both(*changes):
    def apply(config):
        for one in changes:
            one(config)

    return apply


def add_set(name, source="beir:somewhere", **values):
    return lambda config: config_lib.add_set(config, name, source, **values)


def add_unused_stage(name):
    def apply(config):
        order = config.train.stages
        config_lib.add_stage(config, name)
        config.train.stages = order

    return apply


# Found in the values alone.
STATIC = [
    (change(f"{SECOND}.shares", (0.75, 0.5)), f"{SECOND}.shares=(0.75, 0.5): sum to 1.25"),
    (change(f"{SECOND}.shares", (1.0,)), f"{SECOND}.shares=(1.0,): 1 for 2 sets (train, other)"),
    (
        change(f"{SECOND}.shares", (1.0, 0.0)),
        f"{SECOND}.shares=(1.0, 0.0): expected a tuple",
    ),
    (change(f"{SECOND}.shares", ()), f"{SECOND}.shares=(): give a weight for each of train, other"),
    (change(f"{SECOND}.share_unit", "rows"), f"{SECOND}.share_unit='rows': expected one of epochs"),
    (change(f"{SECOND}.batches", "shuffled"), f"{SECOND}.batches='shuffled': expected one of hom"),
    (change(f"{FIRST}.sets", ("nq",)), f"{FIRST}.sets=('nq',): unknown ['nq']; there are train"),
    (
        change(f"{FIRST}.sets", ("train", "train")),
        f"{FIRST}.sets=('train', 'train'): expected",
    ),
    (change("train.stages", ("second", "third")), "train.stages=('second', 'third'): unknown"),
    (
        change("train.stages", ("first", "first", "second")),
        "expected a tuple of different items",
    ),
    (add_unused_stage("third"), "stage 'third' never runs"),
    (change("train.stages", ("second", "first")), f"{SECOND}.start='best': there is no stage bef"),
    (change("data.dev_split", ""), f"{SECOND}.start='best': needs dev scores"),
    (
        change(f"{SECOND}.start", ""),
        f"{SECOND}.start='': expected one of last",
    ),
    (change(f"{SECOND}.num_negatives", 5), f"{SECOND}.num_negatives=5: mining.num_negatives=4"),
    (
        both(change(f"{FIRST}.num_negatives", 0), change(f"{FIRST}.in_batch_negatives", False)),
        f"{FIRST}.in_batch_negatives=False: leaves no negatives",
    ),
    (change(f"{FIRST}.warmup", 9), f"{FIRST}.warmup=9.0: there are 4 steps"),
    (
        change(f"{FIRST}.warmup", -0.1),
        f"{FIRST}.warmup=-0.1: expected a number of at le",
    ),
    (change(f"{FIRST}.schedule", "step"), f"{FIRST}.schedule='step': expected one of linear"),
    (
        both(change(f"{FIRST}.dropout", 0.1), change(f"{SECOND}.dropout", 0.2)),
        "stages have the rates [0.1, 0.2]",
    ),
    (add_set("train"), "'train' is not a valid name for a set"),
    (add_set("a/b"), "'a/b' is not a valid name for a set"),
    (change("sets.other.source", ""), "sets.other.source='': expected a data set"),
    (change("sets.other.teachers", ("big",)), "sets.other.teachers=('big',): unknown ['big']"),
    (change("sets.other.rule", "best"), "sets.other.rule='best': expected one of naive"),
    (change("sets.other.percent", 7), "sets.other.percent=7: expected 'auto'"),
    (change("sets.other.anchor", "median"), "sets.other.anchor='median': expected one of own"),
    (change("sets.other.num_negatives", 0), "sets.other.num_negatives=0: expected a whole number"),
    (
        change("student.attention", "flash"),
        "student.attention='flash': expected one of auto, xla, cudnn",
    ),
    (change("mining.num_distilled", 5000), "mining.num_distilled=5000: search.depth="),
    (change("mining.positives.max_rank", 5000), "mining.positives.max_rank=5000: search.depth="),
    (change("student.remat", "some"), "student.remat='some': expected one of none, attention"),
    (change("student.init", "zero"), "student.init='zero': expected one of pretrained, random"),
    (change("student.param_dtype", "bfloat16"), "student.param_dtype='bfloat16': all weights are"),
    (change("rounds", 0), "rounds=0: expected a whole number from 1"),
    (
        both(change("rounds", 2), change("stages", ("embed", "search", "mine", "export"))),
        "rounds=2: more than one round needs the stages mine and train",
    ),
    (change("result.pick", "newest"), "result.pick='newest': expected one of last, best"),
    (change("result.merge", "sum"), "result.merge='sum': expected one of average, slerp"),
    (change("result.merge_last", 3), "result.merge_last=3: the last stage keeps 2 checkpoints"),
    (
        both(change("result.merge_last", 2), change("result.merge_weights", (0.5, 0.6))),
        "result.merge_weights=(0.5, 0.6): sum to 1.1, not 1",
    ),
    (
        both(change("result.merge_last", 2), change("result.merge_weights", (1.0,))),
        "result.merge_weights=(1.0,): 1 for 2 models",
    ),
    (
        both(change("result.merge_last", 2), change("result.pick", "best")),
        "result.pick='best': merge_last merges the last checkpoints",
    ),
]
# Found by looking at the data, the mesh and the model.
LOOKING = [
    (change("sets.other.split", "nope"), "nope"),
    (change("sets.other.source", "beir:/not/there"), "/not/there"),
    (change("mesh.data", 5), "5"),
    (change(f"{FIRST}.loss.dims", (16, 64)), f"{FIRST}.loss.dims=(16, 64): the embedding is 32"),
    (change(f"{FIRST}.loss.score_mask", "near"), f"{FIRST}.loss.score_mask='near': expected one"),
    (change(f"{SECOND}.start", "/no/such/folder"), "/no/such/folder: no such folder"),
    (change("result.merge_with", ("/no/model",)), "/no/model: no such folder"),
    (change("student.attention", "cudnn"), "cudnn"),
    (change("teacher.attention", "splash"), "splash"),
    (
        change("sets.other.query_prompt", "the wing of a body in the flow of a wing of a body in "),
        "sets/other/student: query_length=16, but the prompt",
    ),
    (change("student.model", "/no/student"), "/no/student: no such folder"),
]


@pytest.mark.parametrize(("apply", "words"), STATIC + LOOKING)
def test_a_bad_recipe_is_refused_before_anything_is_made(pristine, tmp_path, apply, words):
    config = recipe_project.two_stages(pristine)
    apply(config)
    wrong = pipeline.mistakes(config, str(tmp_path / "w"))
    assert [line for line in wrong if words in line], wrong
    assert all("\n" not in line for line in wrong)
    assert not (tmp_path / "w").exists()


def test_the_recipe_itself_is_good(pristine, tmp_path):
    assert pipeline.mistakes(recipe_project.two_stages(pristine), str(tmp_path / "w")) == []


def test_a_batch_that_the_mesh_cannot_split_is_told_for_its_stage(pristine, tmp_path):
    config = recipe_project.two_stages(pristine)
    config.train_stages.second.batch_size = 7
    result = command.alone(
        f"--config={write(tmp_path, pristine, 'c.train_stages.second.batch_size = 7')}",
        f"--workdir={tmp_path / 'w'}",
        devices=2,
    )
    assert "train_stages.second.batch_size=7 is not a multiple of the 2 devices" in result.error


def write(folder: pathlib.Path, project: pathlib.Path, *lines: str) -> pathlib.Path:
    """A config file of the two stages with changes."""
    path = folder / "config.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import pathlib, sys
            sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
            import recipe_project
            from nvret_jax import config as config_lib
            def get_config(arg=''):
                c = recipe_project.two_stages(pathlib.Path({str(project)!r}))
            """
        )
        + "".join(f"    {line}\n" for line in lines)
        + "    return c\n"
    )
    return path


def test_all_mistakes_come_in_one_line_of_the_command(pristine, tmp_path):
    path = write(
        tmp_path,
        pristine,
        "c.train_stages.second.shares = (0.75, 0.5)",
        "c.sets.other.rule = 'best'",
        "c.train_stages.first.num_negatives = 9",
        "c.train_stages.first.loss.dims = (64,)",
        "c.student.lora_rank = 4",
        "c.student.lora_targets = ('no_such_module',)",
        "c.result.merge_last = 9",
    )
    result = command.inside(f"--config={path}", f"--workdir={tmp_path / 'w'}")
    for words in (
        "sum to 1.25",
        "sets.other.rule='best'",
        "train_stages.first.num_negatives=9",
        "the embedding is 32 wide",
        "no_such_module",
        "result.merge_last=9",
    ):
        assert words in result.error
    assert not (tmp_path / "w").exists()

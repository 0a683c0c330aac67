"""Bad values of every key: refused in one line, the same one whoever is asked, and at once.

Values follow from what a key takes. Each is given to the Python function that runs a config, to its
dry run, to the command line, to `--plan`, and to the functions of `nvret_jax.api` that have the
same option.
"""

import math
import pathlib
import textwrap
import time

import command
import numpy as np
import pytest
import recipe_project

from nvret_jax import api, options, pipeline
from nvret_jax import config as config_lib
from nvret_jax.config import checks
from nvret_jax.errors import InputError
from nvret_jax.mining.options import Options
from nvret_jax.options import Choice, Combined, Either, Flag, Many, Number, Text, blocks
from nvret_jax.training.loss.losses import Loss

NAN, INF = math.nan, math.inf
HUGE = (10**9, 10**12, 10**18, 10**30, -(10**30), 1e308)
MOST_SECONDS = 5.0


def bad_values(takes):
    """Values that a key does not take: of other types, out of range, empty, nested, no text."""
    if isinstance(takes, Number | Either):
        tried = [NAN, INF, -INF, *HUGE, -1, -0.5, 0, 0.5, 1.5, "x", "", "5", True, (1,), {}]
    elif isinstance(takes, Flag):
        tried = ["yes", "", 0, 1, 0.5, (True,), {}]
    elif isinstance(takes, Choice | Combined | Text):
        tried = ["no such word", "a\0b", "half \ud83d", " ", "", "x" * 5000, 3, NAN, True, (), {}]
    else:
        item = [(v,) for v in bad_values(takes.item)] if isinstance(takes, Many) else []
        tried = ["words", 3, {}, NAN, {1}, ((),), ((1,),), (None,), (NAN, "x"), *item]
    return [value for value in [*tried, None] if not takes.fits(value)]


def make(folder: pathlib.Path):
    """A config with a second teacher, a second set and two stages."""
    made = recipe_project.two_stages(folder)
    config_lib.add_teacher(made, "second", str(folder / "model"))
    return made


def change(config, key, value):
    """Sets a value without the checks of ConfigDict, as a program can."""
    block, _, leaf = key.rpartition(".")
    with config.ignore_type():
        for name in block.split(".") if block else ():
            config = config[name]
        config._fields[leaf] = value


def said_of(line: str, key: str) -> str:
    """What a message says behind 'key=value'; AssertionError if it is no message of this key."""
    assert "\n" not in line
    head, expected, rest = line.partition("expected ")
    assert f"{key}=" in head, line
    assert expected, line
    return rest


def refused(call) -> str:
    """The line of the InputError that a call raises, and that it raises it at once."""
    begun = time.perf_counter()
    with pytest.raises(InputError) as error:
        call()
    assert time.perf_counter() - begun < MOST_SECONDS
    str(error.value).encode()
    return str(error.value)


CASES = [
    (key, value)
    for key, takes in config_lib.keys_of(make(pathlib.Path("/nowhere"))).items()
    for value in bad_values(takes)
]


def test_there_are_many_and_of_every_key():
    keys = [key for key, _ in CASES]
    assert len(CASES) >= 400
    assert set(keys) == set(config_lib.flat_keys(make(pathlib.Path("/nowhere"))))
    assert min(keys.count(key) for key in keys) >= 3


def test_a_run_its_dry_run_and_the_checks_say_the_same(pristine, tmp_path):
    config = make(pristine)
    before = {key: checks._value(config, key) for key in config_lib.flat_keys(config)}
    known = config_lib.keys_of(config)
    for key, value in CASES:
        assert said_of(options.mistake(key, value, known[key]), key).startswith(known[key].words)
    few = CASES[::5]  # all of them take a minute
    assert len(few) >= 400
    for number, (key, value) in enumerate(few):
        change(config, key, value)
        line = refused(lambda: checks.validate(config))
        assert said_of(line, key).startswith(known[key].words)
        if number % 4 == 0:
            for dry_run in (True, False):
                again = refused(
                    lambda dry_run=dry_run: pipeline.run(
                        config, str(tmp_path / "w"), dry_run=dry_run
                    )
                )
                assert again == line
        change(config, key, before[key])
    assert not (tmp_path / "w").exists()
    assert checks.mistakes(config) == []


def write(folder: pathlib.Path, project: pathlib.Path) -> pathlib.Path:
    path = folder / "config.py"
    here = pathlib.Path(__file__).parent
    path.write_text(
        textwrap.dedent(
            f"""
            import pathlib, sys
            sys.path.insert(0, {str(here)!r})
            import test_bad_values
            def get_config(arg=''):
                return test_bad_values.make(pathlib.Path({str(project)!r}))
            """
        )
    )
    return path


def as_flag(takes, value) -> str | None:
    """A value as the command line gives it; None where it has no such form."""
    if value is None:
        return "None"
    if isinstance(takes, Choice | Combined | Text):
        return value if isinstance(value, str) and value != "None" else None
    if isinstance(takes, Number | Either):
        no_value = isinstance(value, tuple | dict) or value in ("", "5")
        return None if no_value else str(value)
    if isinstance(takes, Flag):
        return str(value) if isinstance(value, str | float) and value != "" else None
    return repr(value) if isinstance(value, tuple) and "nan" not in repr(value) else None


def on_the_command_line(pristine, tmp_path, cases):
    path = write(tmp_path, pristine)
    known = config_lib.keys_of(make(pristine))
    tried = 0
    for key, value in cases:
        given = as_flag(known[key], value)
        if given is None or ("\ud83d" in given):
            continue
        expected = known[key].words
        for more in ((), ("--dry_run",), ("--plan=h100:1",)):
            begun = time.perf_counter()
            argv = (f"--config={path}", f"--workdir={tmp_path / 'w'}", f"--config.{key}={given}")
            result = command.inside(*argv, *more)
            assert time.perf_counter() - begun < MOST_SECONDS, (key, value)
            assert result.stderr == result.error + "\n"
            assert expected in said_of(result.error, key), (key, value)
            tried += 1
    assert not (tmp_path / "w").exists()
    return tried


def test_the_command_line_says_the_same(pristine, tmp_path):
    assert on_the_command_line(pristine, tmp_path, CASES[::61]) >= 100


@pytest.mark.long
def test_the_command_line_says_the_same_of_all(pristine, tmp_path):
    tried = on_the_command_line(pristine, tmp_path, CASES)
    print(f"{tried} commands")
    assert tried >= 3000


def mine(**changes):
    vectors = np.eye(4, dtype=np.float32)
    arguments = {
        "query_embeddings": vectors[:2],
        "passage_embeddings": vectors,
        "progress": False,
        **changes,
    }
    return api.mine(["a", "b"], ["w", "x", "y", "z"], [[0], [1]], **arguments)


IN_PYTHON = {
    **{f"mining.{key}": (mine, key) for key in (*blocks.takes_by_key(Options), "compat")},
    "seed": (mine, "seed"),
    "search.backend": (mine, "backend"),
    "search.depth": (mine, "depth"),
    **{f"train.loss.{name}": (Loss, name) for name in options.takes_of(Loss)},
    "train.temperature": (Loss, "temperature"),
    "train.in_batch_negatives": (Loss, "in_batch"),
    "mining.exclude.own_text": (api.Exclude, "own_text"),
    "mining.exclude.same_text": (api.Exclude, "same_text"),
    "mining.exclude.near_copy": (api.Exclude, "cosine"),
    "mining.exclude.minhash": (api.Exclude, "jaccard"),
    "mining.exclude.document_separator": (api.Exclude, "document_separator"),
    "evaluation.depth": (lambda **how: api.evaluate(None, None, "test", **how), "k"),
    "evaluation.min_relevance": (
        lambda **how: api.evaluate(None, None, "test", **how),
        "min_relevance",
    ),
    "export.dtype": (lambda **how: api.export(None, "/nowhere", **how), "dtype"),
}


BASE = config_lib.keys_of(config_lib.base())


def test_python_functions_say_the_same():
    tried = 0
    for key, value in CASES:
        if key not in IN_PYTHON:
            continue
        call, name = IN_PYTHON[key]
        line = refused(lambda call=call, name=name, value=value: call(**{name: value}))
        assert said_of(line, name).startswith(BASE[key].words), (key, value, line)
        tried += 1
    assert tried >= 400


def test_every_number_has_a_range_and_every_text_a_set_or_a_rule():
    config = make(pathlib.Path("/nowhere"))
    known = config_lib.keys_of(config)
    for key in config_lib.flat_keys(config):
        takes, value = known[key], checks._value(config, key)
        assert options.mistake(key, value, takes) is None
        assert takes.words
        if isinstance(value, bool):
            assert isinstance(takes, Flag), key
        elif isinstance(value, int | float):
            parts = takes.parts if isinstance(takes, Either) else [takes]
            assert all(isinstance(part, Number) for part in parts), key
            assert all(-INF < part.low < part.high < INF for part in parts), key
        elif isinstance(value, str):
            assert isinstance(takes, Choice | Combined | Text), key
        elif isinstance(value, tuple):
            assert isinstance(takes, Many), key
        else:
            assert value is None, key
            assert takes.unset, key


def test_a_key_of_another_shape_is_named():
    for key, value, words in [
        ("train", 3, "train=3: expected a block of values"),
        ("mining.exclude", ("x",), "mining.exclude=('x',): expected a block of values"),
        ("sets.other", "beir:x", "sets.other='beir:x': expected a block of values"),
    ]:
        config = make(pathlib.Path("/nowhere"))
        change(config, key, value)
        assert checks.mistakes(config) == [words]
    config = make(pathlib.Path("/nowhere"))
    change(config, "train.steps", config_lib.encoder())
    wrong = checks.mistakes(config)
    assert any(line.startswith("train.steps.model: no such key") for line in wrong)
    assert "train.steps: missing; start from base()" in wrong


def test_a_key_that_is_missing_or_unknown_hides_no_other_mistake():
    config = make(pathlib.Path("/nowhere"))
    change(config, "train.batch_size", 0)
    change(config, "mining.lr", 1)
    with config.unlocked():
        del config.seed
        del config.data.train
    wrong = checks.mistakes(config)
    assert wrong[0].startswith("mining.lr: no such key")
    assert {"seed: missing; start from base()", "data.train: missing; start from base()"} <= set(
        wrong
    )
    assert any(line.startswith("train.batch_size=0: expected") for line in wrong)
    assert not any(line.startswith("data.train=") for line in wrong)  # it follows

"""A dataclass of options as a block of a config: made, read back, viewed, and what of it counts."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from nvret_jax import config as config_lib
from nvret_jax import options
from nvret_jax.config import reference
from nvret_jax.errors import InputError
from nvret_jax.options import block, blocks, calls, choice, named, number, option, or_word, whole


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = option(3, whole(0, 9), "How deep.")
    speed: float = option(0.5, number(0, 1), "How fast.", counts=lambda own: own.depth > 0)
    hidden: int = option(0, whole(0), key="", counts=False)


@dataclasses.dataclass(frozen=True)
class Flat:
    size: float = option(
        0.5, number(-1, 1), "How large.", config=(0.5, or_word(number(0, 1), "auto", "found"))
    )
    kind: str = option("a", choice("a", "b"), "Which.", key="which")

    @staticmethod
    def conflicts(values):
        yield (("kind", "not while it is small") for _ in range(values["size"] == 0))


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str | None = option(None, choice("x", "y", unset=True), "Its name.", counts=False)
    inner: Inner = block(Inner, beside={"speed": "inner_speed"})
    flat: Flat = block(Flat, flat=True)
    many: dict = named(Inner)

    @staticmethod
    def conflicts(values):
        yield (("inner.speed", "too fast") for _ in range(values["inner"]["speed"] > 0.9))


KEYS = {"name", "inner.depth", "inner_speed", "size", "which"}


def test_a_config_has_the_keys_the_dataclass_says():
    made = blocks.default(Outer)
    assert set(config_lib.flat_keys(made)) == KEYS
    assert set(blocks.takes_by_key(Outer)) == KEYS
    assert made.to_dict() == {
        "name": None,
        "inner": {"depth": 3},
        "inner_speed": 0.5,
        "size": 0.5,
        "which": "a",
        "many": {},
    }
    assert [made.get_type(key) for key in ("name", "size", "which")] == [str, object, str]
    made.size = "auto"  # a word in the place of a number
    made.name = "x"


def test_what_is_read_is_what_was_written_and_only_a_configs_words_leave_the_default():
    config = blocks.default(Outer)
    config.update({"inner_speed": 0.25, "which": "b", "size": "auto"})
    config.inner.depth = 7
    assert blocks.read(Outer, config) == Outer(
        None, Inner(depth=7, speed=0.25), Flat(size=0.5, kind="b")
    )
    config.size = 0.125
    assert blocks.read(Outer, config, many={"x": 1}).flat.size == 0.125
    assert blocks.read(Outer, config, many={"x": 1}).many == {"x": 1}
    wrong = ConfigDict({"depth": "deep", "speed": 0.5})
    assert blocks.read(Inner, wrong).depth == "deep"  # which its owner refuses


def test_conflicts_name_keys_as_a_config_has_them():
    config = blocks.default(Outer)
    config.update({"inner_speed": 1.0, "size": 0.0})
    found = [line for check in blocks.conflicts(Outer, config, "at.") for line in check]
    assert found == [
        ("at.inner_speed", "too fast"),
        ("at.which", "not while it is small"),
    ]


def test_only_what_counts_is_a_part():
    made = Outer("x", Inner(depth=0), Flat())
    assert options.parts_of(made, "at.") == {"at.inner.depth": 0, "at.size": 0.5, "at.which": "a"}
    deep = dataclasses.replace(made, inner=Inner(depth=1, speed=0.75, hidden=3))
    assert options.parts_of(deep)["inner_speed"] == 0.75
    assert "inner.hidden" not in options.parts_of(deep)


def test_a_function_takes_the_options_of_a_dataclass_as_keywords():
    @blocks.keywords(Flat, seed=1)
    def call(first, *, other=2, **how):
        return first, other, how

    assert call(0) == (0, 2, {"size": 0.5, "which": "a", "seed": 1})
    assert call(0, which="b", other=3) == (0, 3, {"size": 0.5, "which": "b", "seed": 1})
    with pytest.raises(InputError, match=r"^call: no argument 'whcih'; did you mean 'which'\?$"):
        call(0, whcih="b")
    with pytest.raises(InputError, match=r"^call: missing a required argument: 'first'$"):
        call(which="b")
    with pytest.raises(InputError, match=r"^call: 2 arguments by position, expected at most 1 \(f"):
        call(0, 3)


def test_a_call_names_what_another_library_calls_otherwise():
    @calls.checked({"top_k": "give k="})
    def call(first, k=10):
        return first, k

    assert call(1) == (1, 10)
    with pytest.raises(InputError, match=r"^call: no argument 'top_k'; give k=$"):
        call(1, top_k=3)
    with pytest.raises(InputError, match=r"^call: no argument 'zzz'; arguments: first, k$"):
        call(1, zzz=3)


def test_every_option_of_a_config_says_what_it_is_for():
    every = dict(blocks.entries(config_lib.Config))
    assert set(every) == set(config_lib.flat_keys(config_lib.base()))
    for cls in config_lib.NAMED.values():
        every |= blocks.entries(cls, f"{cls.__name__}.")
    for key, one in every.items():
        assert one.sentence[-1:] == ".", key
        assert one.config_takes.fits(one.config_default) or one.config_default == "", key


def test_help_prints_all_options_or_those_of_a_block():
    keys = set(config_lib.flat_keys(config_lib.base()))
    text = reference.text()
    shown = {line.split(" = ")[0] for line in text.split("\n") if line and line[0] != " "}
    assert set(keys) <= shown
    assert reference.text("train.steps").startswith("train.steps = 0\n    Length of training")
    for about in ("student.lora_rank", "teachers.other.pooling", "sets.x.rule"):
        assert reference.text(about).startswith(f"{about} = "), about
        assert "\n\n" not in reference.text(about)
    assert reference.text("config.train_stages.x.loss").startswith("train_stages.x.loss.")
    assert "\n\nmining.exclude.own_text = " in reference.text("mining")
    with pytest.raises(InputError, match=r"^'minig': .*; did you mean mining\?$"):
        reference.text("minig")
    # Any word that an option's key, values or sentence begins with.
    assert reference.text("softmax").startswith("mining.sampling = ")
    assert "\n\ntrain.loss.temperature_min = " in reference.text("temperature")
    assert "train.learning_rate = " not in reference.text("temperature")

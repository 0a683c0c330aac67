"""What an option takes: ranges, words, texts and tuples; one line for what does not fit."""

import dataclasses
import math

import numpy as np
import pytest

from nvret_jax import options
from nvret_jax.errors import InputError
from nvret_jax.options import choice, flag, many, number, option, text, whole

NAN, INF = math.nan, math.inf
NO_NUMBERS = [NAN, INF, -INF, np.nan, "1", True, None, (1,), [], {}, 1j, b"1", object()]


@pytest.mark.parametrize(
    ("takes", "good", "bad"),
    [
        (number(0, 2), [0, 2, 0.5, np.float32(1), np.int64(2)], [-1e-9, 2.1, 10**400, *NO_NUMBERS]),
        (number(0, 2, above=True), [1e-9, 2], [0, 0.0, -1, 3]),
        (number(0, 1, below=True), [0, 0.999], [1, 1.0]),
        (whole(1), [1, 2**31 - 1, np.int32(5)], [0, 2**31, 1.0, 1.5, np.float64(2), *NO_NUMBERS]),
        (whole(3, 9, also={0: "none"}), [0, 3], [1, -3, "0", False]),
        (number(0, 1, also={"auto": "found"}), ["auto", 0.5], ["Auto", "", "0.5", NAN]),
        (number(0, 1, also={-INF: "none"}), [-INF, 0], [INF, NAN]),
        (number(0, 1, unset=True), [None, 1], ["None", NAN]),
        (choice("", "a", "b"), ["", "a"], ["c", "A", None, 1, ("a",), True]),
        (flag(), [True, False, np.True_], [0, 1, "true", None, 1.0]),
        (flag(unset=True), [None, True], ["", 0]),
        (options.number(0, 1, above=True), [1e-30, 1], [0, -0.0, 5e-324, 1e-39, 2]),
        (options.Combined(("a", "b")), ["a", "a+b"], ["a+a", "", "+", "a+c", None, 3]),
        (
            text(),
            ["x", "ä ö", "日本"],
            ["", " ", "a\nb", "a\0", "\ud83d", "x" * 5000, None],
        ),
        (text(empty=True), ["", "x"], [" ", "\0", None]),
        (text(lines=True), ["", " ", "a\nb"], ["a\0b", "\udc80", 3]),
        (text(without="/", longest=3), ["abc"], ["a/b", "abcd"]),
        (many(whole(1)), [(), (1, 2), [3]], ["12", 1, {1}, (0,), (1.0,), ((1,),), (None,), None]),
        (many(text(), least=1, distinct=True), [("a",)], [(), ("a", "a"), ("",), ("a",) * 2000]),
    ],
)
def test_what_fits_and_what_does_not(takes, good, bad):
    for value in good:
        assert options.mistake("key", value, takes) is None, value
    for value in bad:
        line = options.mistake("key", value, takes)
        assert line is not None, value
        assert line.startswith("key="), line
        assert "expected " in line
        assert "\n" not in line
        line.encode()  # half a surrogate pair is shown escaped


def test_a_message_says_what_is_taken_and_what_is_in_the_way():
    lines = [
        options.mistake("a", 95, number(0, 2, "a share", above=True, also={"auto": "found"})),
        options.mistake("a", 5, whole(1000, 20_000, "ranks")),
        options.mistake("a", None, choice("x", "y")),
        options.mistake("a", "perc", choice("naive", "perc_pos")),
        options.mistake("a", "b\0", text("a folder", empty=True)),
        options.mistake("a", (1, NAN), many(number(0, 1))),
        options.mistake("a", "x" * 500, flag()),
        options.mistake("a", 10**6000, flag()),
    ]
    assert lines == [
        "a=95: expected 'auto' (found) or a number above 0 and at most 2 (a share)",
        "a=5: expected a whole number from 1,000 to 20,000 (ranks)",
        "a=None: cannot be unset; expected one of x, y",
        "a='perc': expected one of naive, perc_pos; did you mean perc_pos?",
        "a='b\\x00': expected a folder, or '' for none; it has '\\x00' in it",
        "a=(1, nan): expected a tuple of items, each a number from 0 to 1; item 1 is nan",
        f"a='{'x' * 99}…: expected True or False",
        "a=a value of type int: expected True or False",
    ]


@dataclasses.dataclass(frozen=True)
class Both:
    low: float = option(0.0, number(0, 1))
    high: float = option(1.0, number(0, 1))

    def __post_init__(self):
        options.check(self, "both.")

    @staticmethod
    def conflicts(values):
        yield ((name, "is below low") for name in ["high"] if values["high"] < values["low"])


def test_a_dataclass_checks_its_options_and_then_what_holds_between_them():
    Both(0.2, 0.3)
    with pytest.raises(InputError, match=r"^both.low=2: expected .*; both.high=nan: expected"):
        Both(2, NAN)
    with pytest.raises(InputError, match=r"^both.high=0.1: is below low$"):
        Both(0.2, 0.1)
    assert options.mistakes(Both, {"low": 3}, "x.") == ["x.low=3: expected a number from 0 to 1"]

"""Numbers and ids as files spell them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret_jax.files import numbers


@given(st.integers(-(10**18) + 1, 10**18 - 1), st.sampled_from(["", ".", ".0", ".000"]))
def test_whole_numbers(value, tail):
    assert numbers.whole_number(f"{value}{tail}") == value


@given(st.floats(allow_nan=False))
def test_decimals(value):
    assert numbers.decimal(repr(value)) == value


def test_what_is_no_number_is_left_to_the_caller():
    assert math.isnan(numbers.decimal("nan"))
    assert numbers.decimal("-Infinity") == -math.inf


@pytest.mark.parametrize("word", ["", " 1", "1_0", "１", "٣", "0x1", "1e", "1,5", "1" * 500, "--1"])
def test_what_python_takes_and_files_must_not_hold(word):
    for read in (numbers.whole_number, numbers.decimal):
        with pytest.raises(ValueError, match="number"):
            read(word)


@pytest.mark.parametrize("word", ["0.5", "1e0", "nan", "1" * 19])
def test_what_is_no_whole_number(word):
    with pytest.raises(ValueError, match="not a whole number"):
        numbers.whole_number(word)


def test_ids_of_json_values():
    assert numbers.identifier("a") == "a"
    assert numbers.identifier(2**64 - 1) == "18446744073709551615"
    for value in (1.0, True, None, [], 2**64, -(2**64)):
        assert numbers.identifier(value) is None


def test_a_message_shows_what_cannot_be_seen():
    assert numbers.shown("q 1") == "'q 1'"
    assert numbers.shown("\ufeffq1") == r"'\ufeffq1', with the invisible character U+FEFF"
    assert numbers.shown("x" * 100) == f"'{'x' * 60}…'"


def test_plain_ids():
    assert numbers.is_plain("é\u00ad4")
    for identifier in ("", "a b", "a\u2000", "a\x07", "a\ud800"):
        assert not numbers.is_plain(identifier)

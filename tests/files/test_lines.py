"""Lines with their numbers, and mistakes in one message."""

import pytest

from nvret_jax.errors import InputError
from nvret_jax.files.lines import Mistakes, lines


def test_lines_keep_their_numbers_and_lose_marks_and_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n \r\ntwo\u2028still two\n".encode())
    assert list(lines(path, "things")) == [(1, "one"), (4, "two\u2028still two")]


def test_the_first_three_mistakes_are_spelled_out_and_the_rest_counted():
    mistakes = Mistakes()
    mistakes.check()
    for name in "abcde":
        mistakes.add(name)
    with pytest.raises(InputError, match=r"^a; b; c; … and 2 more$"):
        mistakes.check()

"""Words for rankers: as ever where words are spaced, pairs of characters elsewhere."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret_jax.data.words import words


@given(st.text(st.characters(max_codepoint=0x0DFF)))
def test_scripts_with_spaces_are_cut_as_the_library_cuts_them(text):
    assert words(text) == re.findall(r"\b\w\w+\b", text.lower())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢茶。", "我喜 喜欢 欢茶"),
        ("茶", "茶"),
        ("JAXは速いjax", "jax は速 速い jax"),
        ("日本、東京 a日b", "日本 東京 日"),
        ("ｶﾀｶﾅ", "カタ タカ カナ"),
        ("ขั้น", "ขั้น"),
        ("ដើមឈើ", "ដើម មឈើ"),
        ("한국어 문장", "한국어 문장"),
    ],
)
def test_scripts_without_spaces(text, expected):
    assert words(text) == expected.split()

"""Words for rankers: as ever where words are spaced, pairs of characters elsewhere."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret_jax.data.words import words

# Without marks, soft hyphens, and what has another usual form.
USUAL = st.characters(max_codepoint=0x0DFF, exclude_categories=("Mn", "Mc", "Me", "Cf", "Cs"))


@given(st.text(USUAL))
def test_scripts_with_spaces_are_cut_as_the_library_cuts_them(text):
    text = "".join(c for c in text if unicodedata.normalize("NFKC", c) == c)
    text = "".join(c for c in text if not unicodedata.combining(c.lower()[-1]))  # İ
    assert words(text) == re.findall(r"\b\w\w+\b", text.lower())


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_forms_of_one_text_have_the_same_words(text):
    expected = words(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words(unicodedata.normalize(form, text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में खोज।", "हिन्दी में खोज"),
        ("বাংলা ভাষা", "বাংলা ভাষা"),
        ("தமிழ் மொழி", "தமிழ் மொழி"),
        ("བོད་སྐད་", "བོད སྐད"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("re\u0301sume\u0301, a\u0301", "résumé"),
        ("Donau\u00addampf", "donaudampf"),
        ("ＪＡＸ ﬁnd 𝐡𝐢", "jax find hi"),
        ("물 a 한국어", "물 한국어"),
    ],
)
def test_marks_stay_with_their_letters_and_forms_do_not_count(text, expected):
    expected = unicodedata.normalize("NFKC", expected)
    assert words(text) == expected.split()


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

"""The normal form: what it calls the same text and what it keeps apart; keys against the texts."""

import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.normalize import KEY_DTYPE, half_pair, keys, normalize, words

SAME = [
    ("Sorts an array, in place.", "sorts an array in place"),
    ("  two\t\nlines ", "two lines"),
    ("Straße", "STRASSE"),
    ("don't", "don’t"),
    ("don’t", "donʼt"),
    ("“quoted” text", "'quoted' text!"),
    ("well-known", "well known"),
    ("ﬁne", "fine"),
    ("ＡＢＣ", "abc"),
    ("カタカナ", "ｶﾀｶﾅ"),
    ("e\u0301cole", "École"),
    ("soft\u00adhyphen", "softhyphen"),
    ("zero\u200bwidth", "zerowidth"),
    ("star\ufe0f", "star"),
    ("1990–1995", "1990-1995"),
    ("H₂O", "h2o"),
    ("10²", "10^2"),
    ("1½", "1 1/2"),
    ("\u2212 5", "- 5"),
    ("(-5)", "−5"),
    ("pip®", "pip"),
    ("`code`", "code"),
    ("null\x00byte", "null byte"),
    ("你好。世界！", "你好 世界"),
    ("…", "..."),
    ("What?", "¿what"),
    (":5, a ,6", "5 a 6"),
    ("Covid-19", "covid 19"),
    ("page.5", "page 5"),
]
DIFFERENT = [
    ("C", "C#"),
    ("C", "C++"),
    ("C++", "C#"),
    ("foo_bar", "foo bar"),
    ("foo‿bar", "foo bar"),
    ("3.5", "35"),
    ("3.5", "3 5"),
    ("12:30", "1230"),
    ("1,000", "1.000"),
    ("-5", "5"),
    (".5", "5"),
    ("10²", "102"),
    ("1½", "11/2"),
    ("a < b", "a > b"),
    ("x+y", "x y"),
    ("5%", "5"),
    ("$5", "€5"),
    ("résumé", "resume"),
    ("你好", "您好"),
    ("你好世界", "你好"),
    ("?!", "..."),
    ("?", ""),
    ("and/or", "and or"),
    ("not good", "good"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_texts_that_differ_only_in_typing_are_the_same(a, b):
    assert normalize(a) == normalize(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_texts_that_mean_different_things_stay_different(a, b):
    assert normalize(a) != normalize(b)


ODD = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="aZ59.,:-–_#'\"()?! \t½²₂İßﬁǰ你。e\u0301\u00ad\u200d\ufe0f", max_size=30),
)


@settings(max_examples=500, deadline=None)
@given(ODD)
def test_the_normal_form_is_its_own_normal_form(text):
    form = normalize(text)
    assert normalize(form) == form
    assert form == " ".join(form.split())
    assert unicodedata.is_normalized("NFKC", form)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.printable, max_size=60))
def test_plain_text_takes_the_same_road_as_any_other(text):
    # A letter outside ASCII sends the text through NFKC and casefold; the rest must not notice.
    other = normalize(text + " 你")
    mine = normalize(text)
    only_marks = not any(c.isalnum() or c in "#%&*@/\\_" or c in "+<=>$^|~" for c in text)
    assert other == ("你" if only_marks else f"{mine} 你")


@given(st.text(alphabet="的一是不了人我在有他這中大来上国漢字かなカナ", min_size=1, max_size=30))
def test_characters_of_scripts_without_spaces_are_kept(text):
    assert normalize(text) == unicodedata.normalize("NFKC", text)
    assert words(text) == list(unicodedata.normalize("NFKC", text))


def test_words_split_at_spaces_and_at_every_han_character():
    assert words("The C# 语言, well-known.") == ["the", "c#", "语", "言", "well", "known"]
    assert words("One two.") == ["one", "two"]
    assert words(" ") == []


@settings(deadline=None)
@given(st.lists(ODD, max_size=12))
def test_keys_are_equal_exactly_where_normal_forms_are(texts):
    found = keys(texts)
    assert found.dtype == KEY_DTYPE
    assert found.shape == (len(texts),)
    forms = [normalize(text) for text in texts]
    for i, a in enumerate(forms):
        for j, b in enumerate(forms):
            assert (found[i] == found[j]) == (a == b)


def test_keys_of_another_form_compare_that_form():
    a, b, c = keys(["Same ", "Same", "same"], str.strip)
    assert a == b
    assert a != c


def test_keys_are_the_same_on_every_machine():
    assert keys(["Hello, world!"])[0].hex() == "e9a804b2e527fd3601d2ffc0bb023cd6"


def test_half_a_surrogate_pair_has_a_key_too():
    assert len(np.unique(keys(["\ud800", "\ud801"]))) == 2


def test_half_of_a_surrogate_pair_is_found():
    assert half_pair("a \U0001f600") is None
    assert half_pair("ab \ud83d") == ("half of a surrogate pair (\\ud83d, character 4)")

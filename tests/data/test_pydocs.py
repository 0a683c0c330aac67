"""The dataset of docstrings, and the reader of source files under it."""

import ast
import re
from pathlib import Path

import pytest

from nvret_jax.data import pyapi
from nvret_jax.data.pydocs import _assemble, _split_of, build_pydocs, split_docstring
from nvret_jax.errors import InputError


@pytest.fixture(scope="module")
def pydocs():
    return build_pydocs()


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_public_names_are_followed_to_their_definition(tmp_path):
    root = _write(
        tmp_path / "pkg",
        {
            "__init__.py": '"""Doc of pkg."""\nfrom ._src.a import f, _hidden\nfrom .sub import *\n'
            "from os import path\nfrom . import sub as sub\nalias = sub.h\n",
            "_src/__init__.py": "",
            "_src/a.py": 'def f():\n  """Doc of f."""\n\ndef _hidden():\n  """No."""\n\n'
            'def unreached():\n  """No."""\n',
            "sub/__init__.py": "from pkg._src.a import f\n"
            "from ._b import g as g, h\n__all__ = ['g', 'K']\n"
            'class K:\n  """Doc of K."""\n  def m(self):\n    "Doc of m."\n'
            '  def _p(self):\n    """No."""\n',
            "sub/_b.py": 'def g():\n  r"""Doc of g."""\n\nasync def h(\n    x: int,\n'
            ') -> int:\n  # first a comment\n  """Doc of h."""\n  return x\n',
            "other.py": "from pkg._src.a import unreached\n",
            "tests/test_a.py": 'def t():\n  """No."""\n',
            "_tools.py": '__all__ = ["offered"]\ndef offered():\n  """Doc of offered."""\n',
            "broken.py": "def (:\n",
        },
    )
    assert pyapi.public_docs("pkg", root) == {
        "pkg": "Doc of pkg.",
        "pkg.K": "Doc of K.",
        "pkg.K.m": "Doc of m.",
        "pkg.alias": "Doc of h.",
        "pkg.f": "Doc of f.",
        "pkg.g": "Doc of g.",
        "pkg.offered": "Doc of offered.",
    }


def test_cutting_out_bodies_changes_nothing(monkeypatch):
    roots, _ = pyapi.find_roots(["optax", "flax"])
    quick = {name: pyapi.public_docs(name, root) for name, root in roots.items()}
    monkeypatch.setattr(pyapi, "_parse_surface", ast.parse)
    assert quick == {name: pyapi.public_docs(name, root) for name, root in roots.items()}


def test_bodies_are_cut_at_the_right_lines():
    source = '''
class A:
    """Text with code:

    def not_a_function():
        pass
    """
    def one(self): return 1
    def two(self, x={"a": 1},
            y=2) -> dict[str, int]:  # why
        """Doc."""
        def inner():
            """No."""
        return inner
    async def three(self):

        'short'
        if x:
            y = 1

    def four(self):
        return [
        1]

B = 2
'''
    tree = pyapi._parse_surface(source.encode())
    class_a, assign = tree.body
    assert [ast.get_docstring(node) for node in class_a.body[1:]] == [None, "Doc.", "short", None]
    assert assign.value.value == 2
    assert "inner" not in ast.dump(tree)


def test_a_file_the_cut_would_break_is_read_whole():
    source = 'def f():\n    """Doc."""\n    return """\ndef fake(): \n"""\n\ndef g():\n    "G."\n'
    tree = pyapi._parse_surface(source.encode())
    assert [(node.name, ast.get_docstring(node)) for node in tree.body] == [
        ("f", "Doc."),
        ("g", "G."),
    ]
    assert pyapi._parse_surface(b"def (:") is None


@pytest.mark.parametrize(
    ("doc", "summary", "passage"),
    [
        ("Sum of x.\n\nMore words.", "Sum of x.", "More words."),
        ("Sum of x. And more of\nit.\n\nRest.", "Sum of x.", "And more of\nit.\n\nRest."),
        ("Two\nlines, e.g. Here\n\nRest.", "Two lines, e.g. Here", "Rest."),
        ("dot(a, b, out=None)\n\nDot product.\n\nRest.", "Dot product.", "Rest."),
        ("a.sort(key=None) -> None\nSorts in place.\n\nRest.", "Sorts in place.", "Rest."),
        ("Like :func:`~jax.vmap` or ``x``.\n\nRest.", "Like jax.vmap or x.", "Rest."),
        ("Adds `two` numbers.\n\nAdds two\nnumbers: quickly.", "Adds two numbers.", "quickly."),
        ("Adds two.\n\nAdds twofold.", "Adds two.", "Adds twofold."),
        ("Fits.\n\n%(before_notes)s\nRest.", "Fits.", "Rest."),
        ("Only a summary.", "Only a summary.", ""),
        ("", "", ""),
    ],
)
def test_summary_and_rest(doc, summary, passage):
    assert split_docstring(doc) == (summary, passage)


def test_shared_texts():
    rest = "\n\nA passage of more than ten words about {} and nothing else at all."
    docs = {f"m.f{i}": "Adds two numbers together." + rest.format(i) for i in range(3)}
    docs |= {f"m.g{i}": "Returns the object itself." + rest.format(f"g{i}") for i in range(5)}
    docs |= {
        "a.h": "Reads a whole file." + rest.format("h"),
        "b.h": "Read the whole file." + rest.format("h"),
    }
    docs |= {
        "c.short": "Too little to say here.\n\nFew words.",
        "c.vague": "Do it." + rest.format("v"),
    }
    data = _assemble(docs, ["train", "dev", "test"])
    judged = {query: list(p) for split in data.qrels.values() for query, p in split.items()}
    # one query for a summary of three passages; none for one of five; one passage for two copies
    assert judged == {"m.f0?": ["m.f0", "m.f1", "m.f2"], "a.h?": ["a.h"], "b.h?": ["a.h"]}
    kept = {"m.f0", "m.f1", "m.f2", "a.h", "c.vague", *(f"m.g{i}" for i in range(5))}
    assert set(data.corpus.ids) == kept
    assert all(len(split) != 1 or "m.f0" in split for split in data.qrels.values())


@pytest.mark.slow
def test_two_builds_agree(pydocs):
    again = build_pydocs(["test", "dev", "train"])
    assert again.corpus == pydocs.corpus
    assert again.queries == pydocs.queries
    assert again.qrels == pydocs.qrels
    assert again.fingerprint == pydocs.fingerprint
    assert len(pydocs.fingerprint) == 64


def test_size_and_shares(pydocs):
    assert pydocs.name == "pydocs"
    assert 5000 < len(pydocs.queries) <= len(pydocs.corpus) < 9000
    shares = {split: len(q) / len(pydocs.queries) for split, q in pydocs.qrels.items()}
    assert sum(shares.values()) == pytest.approx(1)
    for split, share in {"train": 0.7, "dev": 0.1, "test": 0.2}.items():
        assert shares[split] == pytest.approx(share, abs=0.03)
    assert {
        "numpy.sum",
        "jax.numpy.sum",
        "scipy.linalg.expm",
        "optax.adam",
        "flax.nnx.Linear",
    } <= set(pydocs.corpus.ids)
    assert not [name for name in pydocs.corpus.ids if re.search(r"(^|\.)_|\.tests?\.", name)]


def test_twins_fall_on_one_side(pydocs):
    side = {query: split for split, qrels in pydocs.qrels.items() for query in qrels}
    twins = [name for name in side if name.startswith("numpy.") and f"jax.{name}" in side]
    assert len(twins) > 100
    assert all(side[name] == side[f"jax.{name}"] for name in twins)
    # and no passage is positive in two splits
    passages = [
        p for qrels in pydocs.qrels.values() for p in {p for j in qrels.values() for p in j}
    ]
    assert len(passages) == len(set(passages))
    assert _split_of("sum") == _split_of("sum")


def test_no_passage_opens_with_its_query(pydocs):
    def flat(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    for split in pydocs.qrels:
        for query, passages in pydocs.positives(split).items():
            text = flat(pydocs.queries.texts[pydocs.queries.row[query]])
            for passage in passages:
                content = flat(pydocs.corpus.texts[pydocs.corpus.row[passage]])
                assert not f"{content} ".startswith(f"{text} "), passage


def test_queries_are_distinct_and_speak(pydocs):
    assert len(set(pydocs.queries.texts)) == len(pydocs.queries)
    assert len(set(pydocs.corpus.texts)) == len(pydocs.corpus)
    assert all(len(text.split()) >= 3 and "\n" not in text for text in pydocs.queries.texts)
    assert min(len(text.split()) for text in pydocs.corpus.texts) >= 10


def test_missing_package_and_wrong_split(caplog):
    data = build_pydocs(packages=("optax", "not_a_package_at_all"))
    assert all(name.startswith("optax") for name in data.corpus.ids)
    assert "not_a_package_at_all" in caplog.text
    with pytest.raises(InputError, match=r"no split 'validation'; there are train, dev, test"):
        build_pydocs(["validation"])

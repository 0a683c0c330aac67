"""Calls of the Python interface with arguments of the wrong kind: what is meant, or one line.

`MEANT` are calls whose meaning is plain; each gives what the same call in its plain form gives.
`REFUSED` are all others, with words of the line.
"""

import collections
import pathlib
import time

import numpy as np
import pytest
import tiny_models
import tiny_project

import nvret_jax as nv
from nvret_jax import pipeline
from nvret_jax.config import base

QUERIES = ["the wing", "a body"]
PASSAGES = [f"text {i}" for i in range(12)]
RNG = np.random.default_rng(0)
P = RNG.normal(size=(12, 4)).astype(np.float32)
P /= np.linalg.norm(P, axis=1, keepdims=True)
Q = P[:2] + np.float32(0.1)
NAN = float("nan")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    tiny_project.make(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write(folder / "m")
    return nv.Encoder.from_pretrained(str(folder / "m"))


def mine(**changes):
    arguments = {
        "queries": QUERIES,
        "passages": PASSAGES,
        "positives": [[1], [2]],
        "query_embeddings": Q,
        "passage_embeddings": P,
        "rule": "naive",
        "num_negatives": 2,
        "progress": False,
        **changes,
    }
    return nv.mine(**arguments).negative_rows.values.tolist()


def torch():
    return pytest.importorskip("torch")


def pandas():
    return pytest.importorskip("pandas")


MEANT = {
    "a generator of texts": lambda: {"queries": (q for q in QUERIES)},
    "tuples": lambda: {"queries": tuple(QUERIES), "passages": tuple(PASSAGES)},
    "arrays of texts": lambda: {"passages": np.array(PASSAGES)},
    "a column of a table": lambda: {
        "passages": pandas().Series(PASSAGES, index=[f"i{i}" for i in range(12)])
    },
    "dict values": lambda: {"passages": dict(enumerate(PASSAGES)).values()},
    "one positive each": lambda: {"positives": [1, 2]},
    "an array of one positive each": lambda: {"positives": np.array([1, 2], np.int32)},
    "arrays of positives": lambda: {"positives": np.array([[1], [2]])},
    "numpy integers": lambda: {
        "positives": [[np.int64(1)], [np.uint8(2)]],
        "num_negatives": np.int64(2),
    },
    "a positive twice": lambda: {"positives": [[1, 1], (2,)]},
    "a tensor of positives": lambda: {"positives": torch().tensor([[1], [2]])},
    "tensors": lambda: {
        "query_embeddings": torch().tensor(Q, requires_grad=True),
        "passage_embeddings": torch().tensor(P),
    },
    "narrow tensors": lambda: {"passage_embeddings": torch().tensor(P).to(torch().float64)},
    "a table of floats": lambda: {"passage_embeddings": pandas().DataFrame(P)},
    "lists of floats": lambda: {"query_embeddings": Q.tolist(), "passage_embeddings": P.tolist()},
    "a list of vectors": lambda: {"passage_embeddings": list(P)},
    "a list of tensors": lambda: {"passage_embeddings": [torch().tensor(row) for row in P]},
    "float64": lambda: {"query_embeddings": Q.astype(np.float64)},
    "ids in an array": lambda: {"query_ids": np.array(["a", "b"])},
}


@pytest.mark.parametrize("name", MEANT)
def test_what_can_only_be_meant_in_one_way_is_taken(name):
    assert mine(**MEANT[name]()) == mine()


IDS = [str(100 - i) for i in range(12)]
REFUSED_BY_MINE = [
    # positives
    ({"positives": [["30"], ["12"]], "passage_ids": IDS}, "positives: query 0 has '30' (str); exp"),
    ({"positives": [["p30"], ["p1"]]}, "query 0 has 'p30' (str); expected a list of row numbers"),
    ({"positives": [[1], ["text 2"]]}, "query 1 has 'text 2' (str)"),
    ({"positives": ["text 1", "text 2"]}, "query 0 has 'text 1' (str)"),
    ({"positives": [[1.9], [2]]}, "query 0 has 1.9 (float)"),
    ({"positives": [[1], np.array([2.0])]}, "query 1 has 2.0 (float)"),
    ({"positives": [1.0, 2]}, "query 0 has 1.0 (float)"),
    ({"positives": [[True], [False]]}, "query 0 has True (bool)"),
    ({"positives": np.array([True, False])}, "query 0 has"),
    ({"positives": [[NAN], [2]]}, "query 0 has nan (float)"),
    ({"positives": [None, [2]]}, "query 0 has None (NoneType)"),
    ({"positives": [[None], [2]]}, "query 0 has None (NoneType)"),
    ({"positives": None}, "argument 'positives' is missing; give queries, passages and pos"),
    ({"positives": {"q1": [3], "q2": [4]}}, "got a dict; give a list"),
    ({"positives": [{"3": 1}, {"4": 1}]}, "query 0 has {'3': 1} (dict)"),
    ({"positives": [{3}, {4}]}, "query 0 has {3} (set)"),
    ({"positives": [[[1]], [[2]]]}, "query 0 has [1] (list)"),
    ({"positives": "12"}, "got one str"),
    ({"positives": 3}, "got 3 (int)"),
    ({"positives": [[1]]}, "positives: 1 lists for 2 queries"),
    ({"positives": [[1], []]}, "query 1 has no positive"),
    ({"positives": [[1], [12]]}, "query 1 has row 12; there are 12 passages"),
    ({"positives": [[-1], [2]]}, "query 0 has row -1"),
    ({"positives": [[10**30], [2]]}, "query 0 has row 1000000000000"),
    ({"positives": np.array([[2**40], [1]])}, "query 0 has row 1099511627776"),
    # texts
    ({"queries": "a text"}, "queries: expected a sequence of texts, got one str; wrap it"),
    ({"queries": None}, "queries: expected a sequence of texts, got None"),
    ({"queries": {"a": "b"}}, "queries: expected a sequence of texts, got a dict"),
    ({"queries": {"a", "b"}}, "queries: expected a sequence of texts, got a set"),
    ({"queries": 5}, "got 5 (int)"),
    ({"queries": [1, 2]}, "queries: text 0 is 1 (int); expected str"),
    ({"queries": ["a", None]}, "queries: text 1 is None (NoneType)"),
    ({"queries": ["a", b"b"]}, "queries: text 1 is b'b' (bytes)"),
    ({"queries": [["a"], ["b"]]}, "queries: text 0 is ['a'] (list)"),
    ({"queries": ["a", "half \ud83d pair"]}, "queries: text 1 has half of a surrogate pair"),
    ({"passages": [*PASSAGES[:11], "\udc00"]}, "passages: text 11 has half of a surrogate pair"),
    ({"passages": np.zeros((3, 2))}, "passages: expected a sequence of texts, got 2 dimensions"),
    ({"passages": np.zeros(3)}, "passages: text 0 is 0.0"),
    # ids
    ({"query_ids": ["x"]}, "query_ids: 1 ids for 2 texts"),
    ({"passage_ids": ["x"] * 4}, "passage_ids: 4 ids for 12 texts"),
    ({"passage_ids": ["x"] * 12}, "passage_ids: 'x' is the id of rows 0 and 1"),
    ({"query_ids": [1, 2]}, "query_ids: text 0 is 1 (int)"),
    ({"passage_ids": list(range(12))}, "passage_ids: text 0 is 0 (int)"),
    ({"query_ids": "ab"}, "query_ids: expected a sequence of texts, got one str"),
    # teachers and embeddings
    ({"teacher": "bm25:"}, "give what it names, Bm25Ranker(queries, passages)"),
    ({"teacher": "all-MiniLM-L6-v2"}, "Encoder.from_pretrained('all-MiniLM-L6-v2')"),
    ({"teacher": 3}, "teacher=3 (int): expected an Encoder"),
    ({"teacher": nv.Encoder}, "expected an Encoder"),
    ({"passage_embeddings": None}, "give a teacher"),
    ({"query_embeddings": None}, "give a teacher"),
    ({"query_embeddings": "x"}, "query_embeddings: expected a matrix of floats"),
    ({"query_embeddings": Q[0]}, "query_embeddings have shape (4,)"),
    ({"query_embeddings": np.ones((2, 4), int)}, "query_embeddings are int64"),
    ({"query_embeddings": np.ones((2, 4), bool)}, "query_embeddings are bool"),
    ({"query_embeddings": np.ones((2, 4), object)}, "query_embeddings are object"),
    ({"query_embeddings": np.ones((2, 4), complex)}, "query_embeddings are complex128"),
    ({"query_embeddings": Q * NAN}, "query_embeddings row 0 has nan"),
    ({"query_embeddings": np.ones((3, 4), np.float32)}, "3 query embeddings for 2 texts"),
    ({"query_embeddings": [[1.0, 2.0], [1.0]]}, "query_embeddings: row 1 has shape (1,)"),
    ({"query_embeddings": [["a"], ["b"]]}, "query_embeddings: row 0 has shape"),
    ({"passage_embeddings": P[:5]}, "5 passage embeddings for 12 texts"),
    ({"passage_embeddings": P[:, :3]}, "4 wide and passages 3"),
    ({"passage_embeddings": (row for row in P)}, "passage_embeddings: expected a matrix"),
    ({"passage_embeddings": {"a": P}}, "passage_embeddings: expected a matrix"),
    ({"passage_embeddings": np.zeros((0, 4), np.float32)}, "nothing to search"),
    # options
    ({"num_negatives": 0}, "num_negatives=0: expected a whole number from 1"),
    ({"num_negatives": 2.0}, "num_negatives=2.0"),
    ({"num_negatives": "4"}, "num_negatives='4'"),
    ({"num_negatives": True}, "num_negatives=True"),
    ({"rule": "perc_pos", "percent": 95}, "percent=95: expected 'auto'"),
    ({"rule": "perc_pos", "percent": "auto"}, "mine: percent='auto': needs at least 100 training"),
    ({"teacher": []}, "mine: teacher=[]: expected one or more"),
    ({"percent": -1}, "percent=-1"),
    ({"percent": NAN}, "percent=nan"),
    ({"margin": NAN}, "margin=nan"),
    ({"margin": 3}, "margin=3: expected a number from 0 to 2, because scores are cosines"),
    ({"threshold": NAN}, "threshold=nan"),
    ({"threshold": -3}, "threshold=-3: expected a number from -1 to 1"),
    ({"min_score": NAN}, "min_score=nan"),
    ({"min_score": "0"}, "min_score='0'"),
    ({"rule": None}, "rule=None: cannot be unset"),
    ({"rule": ("naive",)}, "rule=('naive',)"),
    ({"seed": None}, "seed=None"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": "a"}, "seed='a'"),
    ({"depth": 0}, "depth=0"),
    ({"exclude": {"own_text": "off"}}, "exclude={'own_text': 'off'}: expected nvret_jax.Exclude"),
    ({"exclude": ["p1"]}, "exclude=['p1']: expected"),
    ({"rule": "shifted", "max_rank": 5}, "max_rank=5: leaves 0 ranks after shift=10"),
    ({"compat": "st"}, "compat='st'"),
    ({"backend": "gpu"}, "backend='gpu': expected one of auto, device, faiss"),
]


def refused(call):
    """Calls, and returns the one line of the refusal; at most five seconds."""
    begun = time.perf_counter()
    with pytest.raises(nv.InputError) as error:
        call()
    assert time.perf_counter() - begun < 5
    line = str(error.value)
    assert "\n" not in line
    line.encode()
    return line


@pytest.mark.parametrize(("changes", "words"), REFUSED_BY_MINE)
def test_mine_refuses(changes, words):
    assert words in refused(lambda: mine(**changes))


def search(queries=Q, passages=P, k=2, **how):
    return nv.search(queries, passages, k, **how)


Count = collections.namedtuple("Count", "n")
REFUSED_BY_SEARCH = [
    (lambda: search(exclude=[["1"], [2]]), "exclude: query 0 has '1' (str)"),
    (lambda: search(exclude=[["p1"], [2]]), "exclude: query 0 has 'p1' (str)"),
    (lambda: search(exclude=[[1], [1.7]]), "exclude: query 1 has 1.7 (float)"),
    (lambda: search(exclude=[[True], []]), "exclude: query 0 has True (bool)"),
    (lambda: search(exclude={0: [1], 1: [2]}), "exclude: expected a sequence of lists"),
    (lambda: search(exclude=[[1]]), "exclude: 1 lists for 2 queries"),
    (lambda: search(exclude=[[12], []]), "exclude: query 0 has row 12; there are 12 passages"),
    (lambda: search(exclude=[None, []]), "exclude: query 0 has None"),
    (lambda: search(k=0), "k=0: expected a whole number from 1"),
    (lambda: search(k=2.0), "k=2.0"),
    (lambda: search(k="2"), "k='2'"),
    (lambda: search(k=None), "k=None"),
    (lambda: search(k=True), "k=True"),
    (lambda: search(k=NAN), "k=nan"),
    (lambda: search(k=13), "k=13 is more than the corpus has passages (12)"),
    (lambda: search(queries="x"), "queries: expected a matrix of floats"),
    (lambda: search(queries=None), "queries: expected a matrix of floats"),
    (lambda: search(passages=None), "passages: expected a matrix of floats"),
    (lambda: search(passages=[["a"]]), "passages: row 0"),
    (lambda: search(passages=P * NAN), "passages row 0 has nan"),
    (lambda: search(ceiling_q=[NAN, 1.0]), "ceiling_q is NaN"),
    (lambda: search(ceiling_q="ab"), "ceiling_q"),
    (lambda: search(ceiling_q=[0.5]), "ceiling_q has shape (1,)"),
    (lambda: search(backend=None), "backend=None"),
    (lambda: search(progress="yes"), "progress='yes'"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED_BY_SEARCH)
def test_search_refuses(call, words):
    assert words in refused(call)


def test_search_takes_lists_and_tensors():
    wanted = search()[1].tolist()
    assert search(Q.tolist(), P.tolist())[1].tolist() == wanted
    assert search(torch().tensor(Q), torch().tensor(P))[1].tolist() == wanted
    assert search(exclude=[(), np.zeros(0)])[1].tolist() == wanted
    assert search(k=np.int32(2))[1].tolist() == wanted


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.encode(None), "encode: expected a sequence of texts, got None"),
        (lambda e: e.encode({"a": "b"}), "got a dict"),
        (lambda e: e.encode({"a"}), "got a set"),
        (lambda e: e.encode(["a", 3]), "text 1 is 3 (int)"),
        (lambda e: e.encode(["a", NAN]), "text 1 is nan (float)"),
        (lambda e: e.encode(["fine", "half \ud83d pair"]), "text 1 has half of a surrogate pair"),
        (lambda e: e.encode(["a"], kind=None), "kind=None"),
        (lambda e: e.encode(["a"], max_length="8"), "max_length='8'"),
        (lambda e: e.encode(["a"], max_length=8.0), "max_length=8.0"),
        (lambda e: e.encode(["a"], max_length=True), "max_length=True"),
        (lambda e: e.encode(["a"], token_budget=10**30), "token_budget=1000000000"),
        (lambda e: e.encode(["a"], token_budget=NAN), "token_budget=nan"),
        (lambda e: e.encode(["a"], progress=1), "progress=1"),
        (lambda e: nv.evaluate("model", None, "test"), "encoder='model' (str): expected an Enc"),
        (lambda e: nv.evaluate(e, {"a": 1}, "test"), "load_dataset: 1 (int): expected a source"),
        (lambda e: nv.evaluate(e, None, "test"), "dataset=None (NoneType)"),
        (lambda e: nv.evaluate(e, "csv:x", "test"), "unknown scheme 'csv'"),
        (lambda e: nv.evaluate(e, "pydocs:", None), "split=None"),
        (lambda e: nv.evaluate(e, "pydocs:", "test", k=50), "k=50: expected a whole number"),
        (lambda e: nv.evaluate(e, "pydocs:", "test", k=100.0), "k=100.0"),
        (lambda e: nv.evaluate(e, "pydocs:", "test", min_relevance=0), "min_relevance=0"),
        (lambda e: nv.evaluate(e, "pydocs:", "test", backend="gpu"), "backend='gpu'"),
        (lambda e: nv.export("m", "/nowhere/x"), "encoder='m' (str): expected an Encoder"),
        (lambda e: nv.export(e, None), "folder=None"),
        (lambda e: nv.export(e, 3), "folder=3"),
        (lambda e: nv.export(e, "/nowhere/x", dtype="int8"), "dtype='int8': expected one of"),
        (lambda e: nv.export(e, "/nowhere/x", overwrite="yes"), "overwrite='yes'"),
        (lambda e: nv.export(e, "/nowhere/x", matryoshka=8), "matryoshka=8"),
        (lambda e: nv.export(e, "/nowhere/x", card="text"), "card='text': expected a ModelCard"),
        (lambda e: nv.load_dataset(None), "None (NoneType): expected a source"),
        (lambda e: nv.load_dataset(3), "3 (int): expected a source"),
        (lambda e: nv.load_dataset("beir:\ud83d"), "half of a surrogate pair"),
        (lambda e: nv.load_dataset("beir:a\0b"), "it has '\\x00' in it"),
        (lambda e: nv.load_dataset(pathlib.Path("/nowhere")), "/nowhere"),
        (lambda e: nv.load_dataset("pydocs:", splits=[1]), "splits=[1]"),
        (lambda e: nv.load_dataset("pydocs:", allow_empty=None), "allow_empty=None"),
        (lambda e: nv.Bm25Ranker("abc", PASSAGES), "query_texts: expected a sequence"),
        (lambda e: nv.Bm25Ranker(QUERIES, "abc"), "corpus_texts: expected a sequence"),
        (lambda e: nv.Bm25Ranker(QUERIES, {"a": "b"}), "corpus_texts: expected a sequence"),
        (lambda e: nv.Bm25Ranker(QUERIES, ["a\ud83d"]), "text 0 has half of a surrogate pair"),
        (lambda e: nv.Bm25Ranker(QUERIES, PASSAGES, k1=NAN), "k1=nan"),
        (lambda e: nv.Bm25Ranker(QUERIES, PASSAGES, b=2), "b=2: expected a number from 0 to 1"),
        (lambda e: nv.Bm25Ranker(QUERIES, PASSAGES, method="okapi"), "method='okapi'"),
        (lambda e: nv.Bm25Ranker(QUERIES, PASSAGES, stopwords=3), "stopwords"),
        (lambda e: mine(teacher=e, passage_embeddings=None, margin=3), "margin=3"),
        (
            lambda e: pipeline.run(base(), "gs://b/w"),
            "--workdir: gs://b/w: expected a path",
        ),
        (lambda e: pipeline.run(base(), None), "workdir=None: cannot be unset; expected a folder"),
        (lambda e: pipeline.run(base(), 3), "workdir=3: expected a folder"),
        (lambda e: pipeline.run(base(), "a\0b"), "--workdir: 'a\\x00b': a path cannot contain NUL"),
        (lambda e: pipeline.run({}, "w"), "config={}: expected a config"),
        (lambda e: pipeline.run(base(), "w", stages=3), "stages=3: expected"),
        (lambda e: pipeline.run(base(), "w", stages="mined"), "--stages=mined: this config has"),
        (
            lambda e: nv.make_mesh(data="1"),
            "mesh.data='1': expected -1 (the remaining",
        ),
        (lambda e: nv.make_mesh(fsdp=1.0), "mesh.fsdp=1.0: expected"),
        (lambda e: nv.make_mesh(tensor=True), "mesh.tensor=True: expected"),
    ],
)
def test_the_others_refuse(call, words, encoder):
    assert words in refused(lambda: call(encoder))


def test_encode_takes_any_ordered_texts(encoder):
    wanted = encoder.encode(QUERIES)
    for given in ((q for q in QUERIES), tuple(QUERIES), np.array(QUERIES), iter(QUERIES)):
        np.testing.assert_array_equal(encoder.encode(given), wanted)
    assert encoder.encode(QUERIES, max_length=np.int64(8)).shape == wanted.shape


def test_a_data_set_may_be_a_path_and_a_split_a_word(project, encoder):
    plain = nv.load_dataset(f"beir:{project / 'data'}", splits=["test"])
    assert nv.load_dataset(project / "data", splits="test") == plain
    assert list(plain.qrels) == ["test"]
    scored = nv.evaluate(encoder, project / "data", "test")
    assert scored.metrics == nv.evaluate(encoder, plain, "test").metrics

"""Exclusions against plain loops over every query and passage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.normalize import normalize
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.exclude import documents, exclusion, neighbours, overlap
from nvret_jax.mining.exclude.exclusion import Exclusions, Reason
from nvret_jax.mining.options import Exclude
from nvret_jax.search.index import backend


def lists(ragged):
    return [row.tolist() for row in (ragged[i] for i in range(len(ragged)))]


def rows(*values):
    return Ragged.from_rows(values, np.int32)


def brute_search(passages_nd, calls=None):
    """Exact search over a matrix, by sorting everything."""

    def search(vectors_qd, k):
        if calls is not None:
            calls.append((len(vectors_qd), k))
        scores = np.einsum("qd,nd->qn", vectors_qd, np.asarray(passages_nd[:]), dtype=np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), order.astype(np.int32)

    return search


TEXTS = st.sampled_from(["a", "A!", "a ", "b", "b b", "B, b", "c#", "c", "?", "!?"])


@st.composite
def problems(draw):
    """Texts, positives, documents, verdicts: small enough that everything collides."""
    n, q = draw(st.integers(1, 10)), draw(st.integers(1, 5))
    some = st.lists(st.integers(0, n - 1), unique=True, max_size=4)
    return {
        "corpus": draw(st.lists(TEXTS, min_size=n, max_size=n)),
        "queries": draw(st.lists(TEXTS, min_size=q, max_size=q)),
        "positives": draw(st.lists(some, min_size=q, max_size=q)),
        "documents": draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)),
        "verdicts": draw(st.lists(some, min_size=q, max_size=q)),
        "form": draw(st.sampled_from(["normalized", "strip", "off"])),
        "same_text": draw(st.booleans()),
    }


def reasons_by_loop(p, q, row):
    """Every reason against one passage or, where texts decide, against one of the same text."""
    form = normalize(p["corpus"][row])
    copies = [r for r, text in enumerate(p["corpus"]) if normalize(text) == form]
    own = {"normalized": normalize, "strip": str.strip}.get(p["form"])
    found = []
    if own and own(p["corpus"][row]) == own(p["queries"][q]):
        found.append(Reason.OWN_TEXT)
    for positive in p["positives"][q]:
        if p["same_text"] and normalize(p["corpus"][row]) == normalize(p["corpus"][positive]):
            found.append(Reason.SAME_TEXT)
        for other in copies if p["same_text"] else [row]:
            if p["documents"][other] == p["documents"][positive] != -1:
                found.append(Reason.SAME_DOCUMENT)
    if {row, *(copies if p["same_text"] else ())} & set(p["verdicts"][q]):
        found.append(Reason.VERDICT)
    return found


@settings(max_examples=200, deadline=None)
@given(problems())
def test_build_lists_what_a_loop_over_all_pairs_finds_with_its_first_reason(p):
    n = len(p["corpus"])
    ids = tuple(f"p{row}" for row in range(n))
    mapping = {ids[row]: str(d) for row, d in enumerate(p["documents"]) if d != -1}
    made = exclusion.build(
        p["queries"],
        TextTable(ids, p["corpus"]),
        rows(*p["positives"]),
        Exclude(own_text=p["form"], same_text=p["same_text"], document_map=mapping or None),
        verdict_rows=rows(*p["verdicts"]),
    )
    expected = [
        {row: min(found) for row in range(n) if (found := reasons_by_loop(p, q, row))}
        for q in range(len(p["queries"]))
    ]
    for q, positives in enumerate(p["positives"]):
        for row in positives:
            expected[q].pop(row, None)
    assert lists(made.rows) == [sorted(found) for found in expected]
    assert lists(made.reasons) == [[found[row] for row in sorted(found)] for found in expected]
    assert made.rows.values.dtype == np.int32
    assert made.reasons.values.dtype == np.int8
    assert made.counts() == {
        reason.name.lower(): sum(list(found.values()).count(reason) for found in expected)
        for reason in Reason
    }
    # What mining asks of the result.
    grid = np.tile(np.arange(-1, n, dtype=np.int32), (len(expected), 1))
    assert made.reason_of(grid).tolist() == [
        [found.get(row, 0) for row in range(-1, n)] for found in expected
    ]
    together = [sorted({*f, *pos}) for f, pos in zip(expected, p["positives"], strict=True)]
    assert lists(made.for_search(rows(*p["positives"]))) == together
    numbers = np.arange(len(expected))[::-1]
    assert lists(made.take(numbers).rows) == lists(made.rows)[::-1]


def test_a_query_without_positives_has_only_its_own_text_excluded():
    made = exclusion.build(["x"], TextTable(("a", "b"), ["X.", "y"]), rows([]), Exclude())
    assert lists(made.rows) == [[0]]
    assert made.counts()["own_text"] == 1


def test_strip_and_normalized_disagree_about_letter_case():
    assert lists(exclusion.own_text(["A "], ["a", "A", " A"], "strip")) == [[1, 2]]
    assert lists(exclusion.own_text(["A "], ["a", "A", " A"])) == [[0, 1, 2]]


def test_no_queries_give_no_exclusions():
    made = exclusion.build([], TextTable(("a",), ["x"]), rows(), Exclude())
    assert len(made) == 0
    assert set(made.counts().values()) == {0}


def test_blocks_of_keys_join_as_one_table(monkeypatch):
    monkeypatch.setattr(exclusion, "_KEYS", 3)
    texts = ["a", "b", "a", "c", "b", "a", "d", "A"]
    assert lists(SameText.of(texts).copies(rows([0], [6, 1]))) == [[0, 2, 5, 7], [1, 4, 6]]


# --- near copies by vectors ----------------------------------------------------------------------


def unit(vectors_nd):
    return (vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.9, 0.99, 1.0]), st.integers(1, 90))
def test_near_copies_are_all_passages_at_or_above_the_threshold(seed, threshold, n):
    rng = np.random.default_rng(seed)
    # Few directions with a little noise: long runs of near copies, and exact ones.
    noise = rng.choice([0.0, 0.05, 0.4], size=(n, 1)) * rng.normal(size=(n, 4))
    passages_nd = unit(rng.normal(size=(3, 4))[rng.integers(0, 3, n)] + noise)
    cosines = passages_nd.astype(np.float64) @ passages_nd.T.astype(np.float64)
    if (np.abs(cosines - threshold) < 5e-6).any() and threshold < 1:
        return  # float32 may decide otherwise
    positives = [rng.choice(n, size=min(n, 3), replace=False).tolist() for _ in range(4)]
    expected = [
        [row for row in range(n) if max(cosines[p, row] for p in pos) >= threshold - 1e-6]
        for pos in positives
    ]
    search = brute_search(passages_nd)
    assert (
        lists(exclusion.near_copies(rows(*positives), passages_nd, search, threshold)) == expected
    )


def test_the_search_goes_deeper_only_where_the_threshold_is_not_reached():
    passages_nd = unit(np.concatenate([np.tile([[1.0, 0, 0]], (40, 1)), np.eye(3)[1:]]))
    calls = []
    search = brute_search(passages_nd, calls)
    found = exclusion.near_copies(rows([0], [40], [41]), passages_nd, search, 0.9)
    assert lists(found) == [list(range(40)), [40], [41]]
    assert calls == [(3, 16), (1, 32), (1, 42)]
    one_by_one = neighbours.neighbours(np.array([0, 40]), passages_nd, search, 0.9)
    assert lists(one_by_one) == [list(range(40)), [40]]


def test_what_a_search_returns_at_a_time_is_bounded(monkeypatch):
    monkeypatch.setattr(neighbours, "_SCORES", 64)
    monkeypatch.setattr(exclusion, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    passages_nd = unit(rng.normal(size=(60, 3)))
    calls = []
    positives = rows(np.arange(60), [3])
    found = exclusion.near_copies(positives, passages_nd, brute_search(passages_nd, calls), 0.5)
    assert max(count * k for count, k in calls) <= 64
    assert max(count for count, _ in calls) <= 4
    assert lists(found)[0] == list(range(60))
    assert lists(found)[1] == np.flatnonzero(passages_nd @ passages_nd[3] >= 0.5).tolist()


def test_vectors_of_any_length_work_through_unit_rows():
    rng = np.random.default_rng(1)
    directions = unit(rng.normal(size=(30, 5)))
    raw_nd = (directions * rng.uniform(0.1, 9, size=(30, 1))).astype(np.float32)
    scaled = neighbours.UnitRows(raw_nd)
    index = backend.make_index(scaled, backend="device")
    found = exclusion.near_copies(rows([4], [9, 2]), scaled, index.search, 0.4)
    cosines = directions @ directions.T
    expected = [cosines[4] >= 0.4, (cosines[9] >= 0.4) | (cosines[2] >= 0.4)]
    assert lists(found) == [np.flatnonzero(mask).tolist() for mask in expected]


@pytest.mark.parametrize("kind", ["device", "faiss"])
def test_both_search_backends_find_the_same_copies(kind):
    rng = np.random.default_rng(2)
    passages_nd = unit(np.repeat(rng.normal(size=(6, 8)), 20, axis=0) + rng.normal(size=(120, 8)))
    index = backend.make_index(passages_nd, backend=kind)
    found = exclusion.near_copies(rows([0, 50], [119]), passages_nd, index.search, 0.6)
    cosines = passages_nd @ passages_nd.T
    assert lists(found) == [
        np.flatnonzero((cosines[0] >= 0.6) | (cosines[50] >= 0.6)).tolist(),
        np.flatnonzero(cosines[119] >= 0.6).tolist(),
    ]


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_search_over_vectors_that_are_not_unit_is_found_out(scale):
    passages_nd = unit(np.random.default_rng(3).normal(size=(40, 4))) * np.float32(scale)
    with pytest.raises(InputError, match=r"row 5 scores .* where a cosine is 1"):
        exclusion.near_copies(rows([5]), passages_nd, brute_search(passages_nd), 0.9)


def test_a_longer_passage_elsewhere_is_found_out_too():
    passages_nd = np.eye(4, dtype=np.float32)
    passages_nd[2] = [2, 0, 0, 0]
    with pytest.raises(InputError, match="best passage 2"):
        exclusion.near_copies(rows([0]), passages_nd, brute_search(passages_nd), 0.9)


def test_a_zero_vector_has_no_copies():
    passages_nd = np.concatenate([np.zeros((2, 3)), np.eye(3)]).astype(np.float32)
    found = exclusion.near_copies(rows([0], [2]), passages_nd, brute_search(passages_nd), 0.5)
    assert lists(found) == [[], [2]]


def test_a_vector_that_is_not_finite_is_named():
    passages_nd = np.eye(3, dtype=np.float32)
    passages_nd[1, 0] = np.nan
    with pytest.raises(InputError, match="vector of passage row 1 is not finite"):
        exclusion.near_copies(rows([1]), passages_nd, brute_search(passages_nd), 0.9)


# --- near copies by words ------------------------------------------------------------------------


def test_shingles_are_three_words_of_the_normal_form():
    assert overlap.shingles("The quick, brown FOX!") == {"the quick brown", "quick brown fox"}
    assert overlap.shingles("Two words") == {"two words"}
    assert overlap.shingles("  ") == set()
    assert overlap.shingles("你好世界") == {"你 好 世", "好 世 界"}


def edited_texts(rng, families, copies):
    """Families of texts that differ by a few words."""
    out = []
    for _ in range(families):
        base = rng.integers(0, 500, 60)
        for _ in range(copies):
            one = base.copy()
            at = rng.choice(60, size=rng.integers(0, 6), replace=False)
            one[at] = rng.integers(500, 999, len(at))
            out.append(" ".join(f"w{word}" for word in one))
    return out


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_copies_by_words_are_those_a_loop_over_all_pairs_finds(threshold):
    texts = [*edited_texts(np.random.default_rng(4), 8, 12), "short one", "Short, one.", "", "?"]
    sets = [overlap.shingles(text) for text in texts]
    positives = [[0, 13], [30], [96], [98], [55, 60, 2]]
    expected = [
        [
            row
            for row, own in enumerate(sets)
            if any(
                own & sets[p] and len(own & sets[p]) / len(own | sets[p]) >= threshold for p in pos
            )
        ]
        for pos in positives
    ]
    found = exclusion.overlapping(rows(*positives), texts, threshold)
    assert lists(found) == expected
    assert expected[2] == [96, 97]
    assert expected[3] == []
    if threshold == 0.6:
        assert 12 < sum(map(len, expected)) < 60  # copies and non-copies in every family


def test_another_seed_proposes_otherwise_and_confirms_the_same():
    texts = edited_texts(np.random.default_rng(5), 4, 6)
    a, b = (exclusion.overlapping(rows([0, 7, 20]), texts, 0.7, seed=seed) for seed in (0, 1))
    assert lists(a) == lists(b)
    sketches = [overlap._sketcher(seed)({"a b c"}).hashvalues for seed in (0, 0, 1)]
    assert (sketches[0] == sketches[1]).all()
    assert (sketches[0] != sketches[2]).any()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.75, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_proposed_almost_surely(threshold):
    bands, width = overlap._bands(threshold)
    assert bands * width <= overlap.PERMUTATIONS
    assert 1 - (1 - threshold**width) ** bands >= 0.999
    wider = width + 1
    if wider <= overlap.PERMUTATIONS // 2:
        assert 1 - (1 - threshold**wider) ** (overlap.PERMUTATIONS // wider) < 0.999


def test_the_seed_of_the_settings_reaches_minhash(monkeypatch):
    seeds = []

    def near_copies(distinct, texts, threshold, *, seed):
        seeds.append(seed)
        return Ragged.from_rows([[row] for row in distinct], np.int32)

    monkeypatch.setattr(overlap, "near_copies", near_copies)
    corpus = TextTable(("a", "b"), ["x", "y"])
    exclusion.build(["q"], corpus, rows([1]), Exclude(jaccard=0.9, seed=7))
    assert seeds == [7]


def test_build_calls_near_copies_of_both_kinds_by_one_reason():
    texts = [*edited_texts(np.random.default_rng(6), 1, 1), "other words", "and these"]
    texts.append(texts[0] + " more")
    passages_nd = unit(np.array([[1, 0], [1, 0.01], [0, 1], [0, 1]], np.float32))
    made = exclusion.build(
        ["q"],
        TextTable(tuple("abcd"), texts),
        rows([0]),
        Exclude(cosine=0.95, jaccard=0.9),
        passages_nd=passages_nd,
        search=brute_search(passages_nd),
    )
    assert lists(made.rows) == [[1, 3]]
    assert made.counts()["near_copy"] == 2


# --- documents -----------------------------------------------------------------------------------


def test_a_document_is_the_id_up_to_the_last_separator():
    found = documents.by_separator(["a#1", "b#1", "a#2", "a", "a#x#1", "a#x#2"], "#")
    assert found.tolist() == [0, 1, 0, 0, 2, 2]
    assert documents.by_separator(["d-p1", "d-p12", "e-p1"], "-p").tolist() == [0, 0, 1]


def test_a_passage_of_no_document_is_nobodys_neighbour():
    found = documents.by_map(["a", "b", "c", "d"], {"a": "x", "c": "x", "elsewhere": "y"})
    assert found.tolist() == [0, -1, 0, -1]
    assert lists(exclusion.same_document(rows([0], [1], [1, 2]), found)) == [[0, 2], [], [0, 2]]


@pytest.mark.parametrize("header", ["", "passage_id\tdocument_id\n", "corpus-id\tdoc_id\r\n"])
def test_a_file_of_documents_is_read_with_or_without_header(tmp_path, header):
    path = tmp_path / "documents.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + header.encode() + b"a\tx\r\n\nb\ty\na\tx\n")
    assert documents.read(path) == {"a": "x", "b": "y"}
    made = exclusion.build(
        ["q"],
        TextTable(("a", "b", "c"), ["1", "2", "3"]),
        rows([0]),
        Exclude(document_map=path),
    )
    assert lists(made.rows) == [[]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "chunk,document_id,passage_id\n1,x,a\n2,y,b\n"),
        ("d.jsonl", '{"id": "a", "doc_id": "x"}\n{"id": "b", "doc_id": "y"}\n'),
        ("d.txt", "a\tx\nb\ty\n"),
        ("d", "a\tx\nb\ty\n"),
    ],
)
def test_documents_are_read_from_any_table_that_names_its_columns(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert documents.read(tmp_path / name) == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tx\nb\n", "documents.tsv:2: expected 2 columns .* got 1"),
        ("a\tx\tmore\n", "documents.tsv:1: expected 2 columns .* got 3"),
        ("a x\n", "documents.tsv:1: expected 2 columns .* got 1"),
        ("a\tx\nb\t \n", "documents.tsv:2: .* got an empty one"),
        (
            "a\tx\nb\ty\na\ty\n",
            "documents.tsv:3: passage 'a' is in document 'y' .* 'x' in .*documents.tsv:1",
        ),
        ("", "documents.tsv: empty"),
        ("passage_id\tdocument_id\n", "documents.tsv: empty"),
        ("a\tx\n" + "b\nc\nd\ne\nf\n", "tsv:2.*tsv:4.*… and 2 more"),
        (b"a\tx\n\xff\ty\n", "documents.tsv:2: byte 0xff is not UTF-8"),
        (None, "documents.tsv: no such file"),
        ("z\tx\ny\tx\n", "documents.tsv: none of its 2 passage ids is among the 2 of the corpus"),
    ],
)
def test_a_bad_file_of_documents_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "documents.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        exclusion.build(
            ["q"], TextTable(("a", "b"), ["1", "2"]), rows([0]), Exclude(document_map=str(path))
        )
    assert "\n" not in str(caught.value)


# --- what cannot be asked for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"own_text": "exact"}, "own_text='exact': expected one of normalized, strip"),
        ({"cosine": 1.5}, "cosine=1.5: expected a number from 0 to 1"),
        ({"cosine": -0.1}, "cosine=-0.1"),
        ({"cosine": float("nan")}, "cosine=nan"),
        ({"jaccard": 2}, "jaccard=2"),
        ({"jaccard": 0.01}, "jaccard=0.01: expected 0 .off. or a number from 0.053 to 1"),
        ({"document_separator": "#", "document_map": {"a": "b"}}, "one document: give only one"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Exclude(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cosine": 0.9}, "cosine=0.9 needs passage vectors and a search"),
        ({"document_separator": "::"}, "no passage id has the document separator '::', .* 'a#1'"),
        ({"document_map": {"z": "y"}}, "document_map: none of its 1 passage ids"),
    ],
)
def test_what_the_data_cannot_give_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        exclusion.build(["q"], TextTable(("a#1",), ["text"]), rows([0]), Exclude(**values))


def test_an_unknown_form_of_own_text_is_refused():
    with pytest.raises(InputError, match="unknown form='lower'"):
        exclusion.own_text(["q"], ["p"], "lower")


def test_lists_of_another_length_are_a_programming_error():
    with pytest.raises(ValueError, match="VERDICT: 1 rows for 2 queries"):
        exclusion.combine([(Reason.VERDICT, rows([0]))], rows([], []))
    assert isinstance(exclusion.combine([], rows([1], [])), Exclusions)

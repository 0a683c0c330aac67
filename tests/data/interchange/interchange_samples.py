"""Rows to convert, drawn at random; what they hold as plain values; valid files of every format."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from nvret_jax.data import interchange

ROW_FORMATS = [name for name, form in interchange.FORMATS.items() if form.kind == "rows"]
RUN_FORMATS = [name for name, form in interchange.FORMATS.items() if form.kind == "run"]
SUFFIX = {"flagembedding": ".jsonl", "tevatron": ".jsonl", "nemo-inline": ".jsonl"}

# What each format holds besides texts; the claims that the round trips test.
HOLDS = {
    "flagembedding": {"scores", "extra", "empty", "repeats"},
    "tevatron": {"ids", "titles", "scores", "extra", "passage_extra", "empty", "repeats"},
    "tevatron-ids": {
        "ids",
        "titles",
        "scores",
        "extra",
        "passage_extra",
        "unused",
        "empty",
        "repeats",
    },
    "nemo": {"ids", "scores", "extra", "unused", "empty", "repeats"},
    "nemo-inline": {"query ids", "scores", "extra", "empty", "repeats"},
    "st-triplet": {"distinct"},
    "st-triplet-scores": {"scores", "all scored", "distinct"},
    "st-n-tuple": {"even"},
    "st-n-tuple-scores": {"scores", "all scored", "even"},
    "st-labeled-pair": {"no negatives", "no positives"},
    "st-labeled-pair-scores": {"scores", "all scored", "one positive", "no negatives"},
    "st-labeled-list": {"no negatives", "no positives", "repeats"},
    "st-labeled-list-scores": {"scores", "all scored", "no negatives"},
    "three-table": {"ids", "scores", "extra", "unused", "unused queries", "no negatives"},
    "arctic": {"ids", "unused", "unused queries", "no negatives", "no positives", "apart"},
    "beir": {
        "ids",
        "plain ids",
        "titles",
        "scores",
        "extra",
        "passage_extra",
        "unused",
        "unused queries",
        "empty",
        "repeats",
    },
}

_characters = st.characters(exclude_categories=["Cs"])
_odd = st.sampled_from(["\u2028", "\n", "\r\n", "\x00", '"', "\\", "\t", " ", "𝄞", "nan", "[1]"])
texts = st.one_of(st.text(_characters, max_size=6), _odd, st.lists(_odd, max_size=3).map("".join))
plain_ids = st.text("abcxyz0123456789-_.:é", min_size=1, max_size=5)
ids = st.one_of(
    plain_ids, st.text(_characters, min_size=1, max_size=4), st.integers(0, 2**64 + 5).map(str)
)
scores = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != -1),
    st.integers(-3, 3).filter(lambda x: x != -1).map(float),
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        texts,
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=3,
)
_extra_keys = st.sampled_from(["prompt", "type", "lang", "é", "x_1"])
extras = st.dictionaries(_extra_keys, json_values, max_size=2)


@st.composite
def rows(draw, holds):
    """Rows with nothing in them that a format which `holds` this would lose."""
    builder = interchange.Builder()
    named, titled = "ids" in holds, "titles" in holds
    ids_ = plain_ids if "plain ids" in holds else ids
    with_extra = extras if "passage_extra" in holds else st.just({})
    pool = draw(
        st.lists(
            st.tuples(texts, texts if titled else st.just(""), with_extra),
            min_size=2,
            max_size=5,
            unique_by=lambda t: (t[0], t[1]),
        )
    )
    names = draw(st.lists(ids_, min_size=len(pool), max_size=len(pool), unique=True))
    passages = [
        builder.passage("", text, name if named else None, title, dict(extra))
        for name, (text, title, extra) in zip(names, pool, strict=True)
    ]
    count = draw(st.integers(1, 4))
    query_texts = draw(st.lists(texts, min_size=count, max_size=count, unique=True))
    names = draw(st.lists(ids_, min_size=count, max_size=count, unique=True))
    query_named = named or "query ids" in holds
    queries = [
        builder.query("", text, name if query_named else None)
        for text, name in zip(query_texts, names, strict=True)
    ]
    order = queries
    if "repeats" in holds and draw(st.booleans()):
        order = draw(st.lists(st.sampled_from(queries), min_size=1, max_size=5))
    kept = set() if "unused" in holds else None
    width = draw(st.integers(1, 2))
    free = {"empty"} & holds
    for number, query in enumerate(order):
        least = 0 if (free or "no positives" in holds) and number else 1
        most = 1 if "one positive" in holds else 3
        positives = draw(
            st.lists(
                st.sampled_from(passages), min_size=least, max_size=most, unique="distinct" in holds
            )
        )
        least = 0 if free or ("no negatives" in holds and positives) else 1
        few, many = (width, width) if "even" in holds else (least, 3)
        negatives = draw(st.lists(st.sampled_from(passages), min_size=few, max_size=many))
        if "apart" in holds:  # one relation a pair
            positives = list(dict.fromkeys(positives))
            negatives = [n for n in dict.fromkeys(negatives) if n not in positives]
            if not positives and not negatives:
                positives = [passages[0]]
        if kept is not None:
            kept.update(positives, negatives)
        one = scores if "all scored" in holds else st.one_of(scores, st.just(math.nan))
        several = st.just(math.nan) if "scores" not in holds else one
        numbers = [
            draw(st.lists(several, min_size=len(s), max_size=len(s)))
            for s in (positives, negatives)
        ]
        extra = draw(extras) if "extra" in holds else {}
        builder.add(query, positives, negatives, *numbers, extra)
    return builder.build()


def content(rows, *, ids=True, extra=True):
    """Training rows as plain values: nothing of row numbers, everything else in order."""
    table = rows.passages

    def side(passages, scores):
        return [
            (
                table.ids[p] if ids else "",
                table.titles[p] or "",
                table.texts[p],
                None if math.isnan(s) else s,
            )
            for p, s in zip(passages, scores, strict=True)
        ]

    return [
        (
            rows.queries.ids[row.query] if ids else "",
            rows.queries.texts[row.query],
            side(row.positives, row.positive_scores),
            side(row.negatives, row.negative_scores),
            row.extra if extra else None,
        )
        for row in rows
    ]


def table_content(texts):
    """A table as {id: (title, text, further keys)}."""
    return {
        name: (texts.titles[i] or "", texts.texts[i], texts.extra.get(i, {}))
        for i, name in enumerate(texts.ids)
    }


def target(name, folder, stem="out"):
    """A path of the kind a format writes to."""
    if name.startswith("st-"):
        return folder / f"{stem}.parquet"
    return folder / f"{stem}{SUFFIX.get(name, '')}"


def jsonl(path, *records):
    """Writes JSON lines; a string stands for itself."""
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def parquet(path, columns):
    """Writes a parquet file of columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def example():
    """Two queries with all that any format holds."""
    builder = interchange.Builder()
    a = builder.passage("", "lift and drag", "p1", "Wings")
    b = builder.passage("", "no title here", "p2")
    c = builder.passage("", "third", "p3")
    builder.passage("", "in no row", "p4")
    q1, q2 = builder.query("", "what lifts a wing", "q1"), builder.query("", "count", "q2")
    builder.add(q1, [a], [b, c], [0.9], [0.5, 0.25], {"prompt": "Find: "})
    builder.add(q2, [c, b], [a], [0.75, 0.7], [0.5])
    return builder.build()


def read(name, path):
    said = []
    return interchange.read(name, path, said.append), said


def written(name, tmp_path, rows=None):
    path, said = target(name, tmp_path), []
    interchange.write(rows or example(), name, path, said.append)
    return path, said


def records(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def simple(rows):
    """[(query, positives, negatives)] as texts."""
    table = rows.passages
    return [
        (
            rows.queries.texts[r.query],
            [table.texts[p] for p in r.positives],
            [table.texts[n] for n in r.negatives],
        )
        for r in rows
    ]

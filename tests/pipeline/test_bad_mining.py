"""Bad options and files of mining through the real command; see `bad_rows`."""

import json

import numpy as np
import pytest
import tiny_project
from bad_rows import Row, check, config, flag

BASE = "from nvret_jax.config import base, add_teacher\ndef get_config(arg=''):\n    c = base()\n"
SEARCH = "--stages=embed,search"
MINE = "--stages=embed,search,mine"


def mining(name, words, *values, **more):
    """Values of `config.mining` that cannot be."""
    return flag(name, words, *(f"--config.mining.{value}" for value in values), **more)


def with_file(name, words, path, content, *flags, **more):
    """A file of the user that is at fault; `content` is text, or called with the file's path."""

    def make(project):
        target = project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(target)
        else:
            target.write_text(content)

    return Row(name, words, flags, make, early=False, again=False, **more)


def verdict(name, words, content, suffix="jsonl"):
    path = f"verdicts.{suffix}"
    return with_file(name, words, path, content, MINE, f"--config.mining.verdicts={{}}/{path}")


def run_file(name, words, content):
    return with_file(
        name, words, "teacher.run", content, SEARCH, "--config.teacher.model=run:{}/teacher.run"
    )


def vectors(name, words, passages, queries, passage_ids=None):
    """Vectors as npy; a count of ids, or a matrix."""

    def make(folder):
        folder.mkdir()
        for kind, matrix, letter in (("passages", passages, "p"), ("queries", queries, "q")):
            np.save(folder / f"{kind}.npy", matrix)
            ids = [f"{letter}{i}" for i in range(len(matrix))]
            if kind == "passages" and passage_ids is not None:
                ids = passage_ids
            (folder / f"{kind}.ids.txt").write_text("".join(f"{i}\n" for i in ids))

    return with_file(
        name, words, "vectors", make, SEARCH, "--config.teacher.model=vectors:{}/vectors"
    )


def matrix(rows, width=4, bad=None):
    values = np.ones((rows, width), np.float32)
    if bad is not None:
        values[3] = bad
    return values


def line(query="q0", passage="p9", verdict="drop"):
    return json.dumps({"query_id": query, "passage_id": passage, "verdict": verdict}) + "\n"


P, Q = tiny_project.PASSAGES, tiny_project.QUERIES
TABLE = [
    # Values.
    mining("unknown among several", ("'perc_pos+best'", "margin_pos"), "rule=perc_pos+best"),
    mining("the same rule twice", ("'abs+abs'", "different"), "rule=abs+abs"),
    mining("percent in words", ("mining.percent='most'", "'auto'"), "percent=most"),
    mining("no percent", ("mining.percent=0",), "percent=0"),
    mining("a list as percent", ("mining.percent=[1]", "'auto'"), "percent=[1]"),
    mining("negative margin", ("mining.margin=-1",), "margin=-1"),
    mining("margin in words", ("mining.margin='some'", "'auto'"), "margin=some"),
    mining("threshold of no cosine", ("mining.threshold=3.0",), "threshold=3"),
    mining("negative shift", ("mining.shift=-1",), "shift=-1"),
    mining(
        "a window too narrow",
        ("mining.max_rank=12", "leaves 2 ranks after shift=10"),
        "rule=shifted",
        "max_rank=12",
    ),
    mining("unknown anchor", ("mining.anchor='median'", "own, min"), "anchor=median"),
    mining("score in words", ("mining.min_score='low'", "number"), "min_score=low"),
    mining("unknown preset", ("mining.compat='st'", "sentence_transformers"), "compat=st"),
    mining("unknown sampling", ("mining.sampling='best'", "top1_softmax"), "sampling=best"),
    mining("sampling from none", ("mining.sample_from=0",), "sample_from=0"),
    mining("frozen", ("mining.sample_temperature=0.0",), "sample_temperature=0"),
    mining("unknown ensemble", ("mining.ensemble='vote'", "intra_dedup"), "ensemble=vote"),
    mining("unknown policy", ("mining.short='pad'", "ragged, drop"), "short=pad"),
    mining("no negatives", ("mining.num_negatives=0",), "num_negatives=0"),
    mining("unknown mode", ("mining.verdict_mode='flip'", "relabel"), "verdict_mode=flip"),
    mining("negative limit", ("mining.max_promoted=-1",), "max_promoted=-1"),
    mining("all may be false", ("mining.calibration.target=1.0",), "calibration.target=1"),
    mining("unknown text form", ("mining.exclude.own_text='yes'", "strip"), "exclude.own_text=yes"),
    mining("no cosine", ("mining.exclude.near_copy=2.0",), "exclude.near_copy=2"),
    mining("no overlap", ("mining.exclude.minhash=-0.5",), "exclude.minhash=-0.5"),
    mining(
        "two kinds of documents",
        ("mining.exclude.document_map", "one document"),
        "exclude.document_separator=#",
        "exclude.document_map=x.tsv",
    ),
    mining("unknown teacher", ("mining.teachers", "'e5'", "known: teacher"), "teachers=('e5',)"),
    mining(
        "a teacher twice",
        ("mining.teachers", "an item occurs twice"),
        "teachers=('teacher','teacher')",
    ),
    flag(
        "two mistakes of mining",
        ("mining.short='pad': expected one of ragged", "; mining.teachers=('x',): "),
        "--config.mining.short=pad",
        "--config.mining.teachers=('x',)",
    ),
    flag("negative memory", ("search.memory_gib=-1",), "--config.search.memory_gib=-1"),
    flag("unknown order", ("rescorer.order='random'",), "--config.rescorer.order=random"),
    mining("unknown target", ("mining.targets", "'e5'", "rescorer"), "targets=('e5',)"),
    mining(
        "a target without a model", ("mining.targets", "rescorer.model"), "targets=('rescorer',)"
    ),
    mining("targets for nothing", ("mining.targets", "loss.distillation"), "targets=('teacher',)"),
    flag(
        "a cross-encoder for nothing",
        ("rescorer.order='unchanged'", "mining.targets"),
        "--config.rescorer.model=/x",
        "--config.rescorer.order=unchanged",
    ),
    flag("rescores nothing", ("rescorer.depth=0",), "--config.rescorer.depth=0"),
    flag("audit of nonsense", ("audit.percents",), "--config.audit.percents=(9.0,)"),
    flag("audit of part of a rank", ("audit.shifts",), "--config.audit.shifts=(1.5,)"),
    config(
        "a teacher's name",
        ("'a/b' is not a valid name for a teacher",),
        BASE + "    add_teacher(c, 'a/b', 'bm25:')\n    return c\n",
    ),
    config(
        "a teacher's key",
        ("teachers.b.lengths: no such key",),
        BASE + "    add_teacher(c, 'b', 'bm25:', lengths=3)\n    return c\n",
    ),
    # Teachers.
    flag("bm25 of what", ("'bm25:x'", "takes nothing"), "--config.teacher.model=bm25:x"),
    flag("vectors of what", ("'vectors:'", "name a folder"), "--config.teacher.model=vectors:"),
    flag("run of what", ("'run:'", "name a file"), "--config.teacher.model=run:"),
    flag("no such vectors", ("/nowhere",), "--config.teacher.model=vectors:/nowhere"),
    flag("no such run", ("/nowhere: cannot be read",), "--config.teacher.model=run:/nowhere"),
    run_file("run of unknown passages", ("teacher.run:1", "'p999'"), "q0 Q0 p999 1 0.5 t\n"),
    run_file("run of two columns", ("teacher.run:1",), "q0 p1\n"),
    run_file("run without numbers", ("teacher.run:2", "high"), "q0 p1 0.5\nq0 p2 high\n"),
    run_file("run with NaN", ("teacher.run:1", "nan"), "q0 p1 nan\n"),
    run_file("empty run", ("teacher.run", "empty"), ""),
    vectors("vectors short of ids", ("passages.npy", "'p95'"), matrix(P - 1), matrix(Q)),
    vectors("vectors of two widths", ("4", "5"), matrix(P), matrix(Q, 5)),
    vectors("vectors with NaN", ("passages.npy", "'p3'", "NaN"), matrix(P, bad=np.nan), matrix(Q)),
    vectors("a vector of zeros", ("passages.npy", "'p3'"), matrix(P, bad=0), matrix(Q)),
    vectors(
        "an id twice", ("passages", "'p0'"), matrix(P), matrix(Q), ["p0", "p0"] + ["x"] * (P - 2)
    ),
    vectors("ids for some", ("passages", "2", str(P)), matrix(P), matrix(Q), ["p0", "p1"]),
    # Verdicts.
    mining("no such verdicts", ("/nowhere.jsonl: cannot be read",), "verdicts=/nowhere.jsonl"),
    verdict("unknown verdict", ("verdicts.jsonl:1", "'perhaps'"), line(verdict="perhaps")),
    verdict("verdict on no query", ("verdicts.jsonl:2", "'q999'"), line() + line("q999")),
    verdict("verdict on no passage", ("verdicts.jsonl:1", "'p999'"), line(passage="p999")),
    verdict("verdicts that differ", ("verdicts.jsonl:2",), line() + line(verdict="keep")),
    verdict("verdicts in prose", ("verdicts.jsonl:1", "JSON"), "p1 is fine\n"),
    verdict("verdicts without header", ("verdicts.csv",), "q0,p1,drop\n", "csv"),
    verdict("verdicts of another kind", ("verdicts.xlsx",), "x", "xlsx"),
    verdict("empty verdicts", ("verdicts.jsonl", "empty"), ""),
    # Exclusions.
    Row(
        "copies without vectors",
        ("near_copy=0.9 needs a teacher that is an encoder", "minhash"),
        (MINE, "--config.teacher.model=bm25:", "--config.mining.exclude.near_copy=0.9"),
        early=False,
    ),
    mining("no documents", ("/nowhere.tsv: cannot be read",), "exclude.document_map=/nowhere.tsv"),
    Row(
        "a separator no id has",
        ("'::'", "separator"),
        (MINE, "--config.mining.exclude.document_separator=::"),
        early=False,
    ),
    with_file(
        "documents of three columns",
        ("map.tsv:1", "2 columns"),
        "map.tsv",
        "p1\td1\tx\n",
        MINE,
        "--config.mining.exclude.document_map={}/map.tsv",
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name.replace(" ", "-"))
def test_bad_mining(row, pristine, tmp_path):
    check(row, pristine, tmp_path)

"""The files of the table in docs/data.md, each made as the tool or the person in question makes it.

All hold the same small data: queries that share words with their passages.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).parents[2]
ROWS = 24


def commands() -> dict[str, str]:
    """First cell of each row of the table -> the source in its last one."""
    page = (ROOT / "docs" / "data.md").read_text()
    table = page.split("## Files and their commands")[1].split("## Tables of pairs")[0]
    rows = re.findall(r"^\| (.*?) \| .* \| `([\w-]+:.*?)` \|$", table, re.MULTILINE)
    return {cell.replace("`", ""): source for cell, source in rows}


def texts(words) -> list[tuple[str, str, str]]:
    """(query, passage, negative) of each row."""
    rng = np.random.default_rng(0)
    passages = [" ".join(rng.choice(words, 12)) for _ in range(ROWS)]
    return [
        (" ".join(passage.split()[:4]), passage, passages[i - 1])
        for i, passage in enumerate(passages)
    ]


def _csv(rows, sep=",", end="\r\n") -> str:
    return end.join(sep.join(f'"{cell}"' for cell in row) for row in rows) + end


def _lines(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: pathlib.Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def _parquet(path: pathlib.Path, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def make(folder: pathlib.Path, words) -> None:
    """Writes all files of the table but `prepared/`, which `make_prepared` writes."""
    rows = texts(words)
    queries, passages, negatives = map(list, zip(*rows, strict=True))
    pairs = list(zip(queries, passages, strict=True))
    head = ("question", "answer")
    _write(folder / "faq.csv", _csv([head, *pairs]))
    _write(folder / "docs.csv", _csv([("id", "body"), *enumerate(negatives[::-1])]))
    sheet = [(*head, "", ""), *((*pair, "", "") for pair in pairs), ("", "", "", "")]
    plain = "\r\n".join(";".join(row) for row in sheet)
    _write(folder / "excel.csv", b"\xef\xbb\xbf" + plain.encode())
    tabs = "\r\n".join("\t".join(row) for row in [head, *pairs])
    _write(folder / "excel.txt", b"\xff\xfe" + tabs.encode("utf-16-le"))
    accents = [(f"{query} é", passage) for query, passage in pairs]
    _write(folder / "western.csv", _csv([head, *accents], ";").encode("cp1252"))
    tickets = [("Nr", "Betreff", "Text"), *((i, *pair) for i, pair in enumerate(pairs))]
    _write(folder / "tickets.csv", _csv(tickets))
    for part in range(2):
        half = [{"query": q, "response": p} for q, p in pairs[part::2]]
        _write(folder / "parts" / f"{part}.jsonl.gz", gzip.compress(_lines(half).encode()))
    for split, part in (("train", pairs[:16]), ("dev", pairs[16:20]), ("test", pairs[20:])):
        _write(folder / "named" / f"{split}.csv", _csv([head, *part]))
    names = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    of_split = [
        ("query", "passage", "split"),
        *((*p, n) for p, n in zip(pairs, names, strict=True)),
    ]
    _write(folder / "split.tsv", "\n".join("\t".join(row) for row in of_split))
    _write(folder / "records.json", json.dumps([{"input": q, "output": p} for q, p in pairs]))
    with pa.CompressedOutputStream(str(folder / "arrays.jsonl.zst"), "zstd") as file:
        file.write(_lines(map(list, rows)).encode())
    _write(folder / "triples.tsv", "\n".join("\t".join(row) for row in rows))
    judged = [("query", "passage", "label"), *((q, p, 1) for q, p in pairs)]
    judged += [(q, n, 0) for q, _, n in rows]
    _write(folder / "judged.csv", _csv(judged))
    scored = {"sentence1": queries * 2, "sentence2": passages + negatives}
    _parquet(folder / "scored.parquet", **scored, score=[0.9] * ROWS + [0.1] * ROWS)
    triplets = {"anchor": queries, "positive": passages, "negative": negatives}
    _parquet(folder / "pairs.parquet", anchor=queries, positive=passages)
    _parquet(folder / "triplets.parquet", **triplets)
    tuples = [
        {"anchor": q, "positive": p, "negative_1": n, "negative_2": passages[i - 2]}
        for i, (q, p, n) in enumerate(rows)
    ]
    _write(folder / "tuples.jsonl", _lines(tuples))
    mined = [{"query": q, "pos": [p], "neg": [n]} for q, p, n in rows]
    _write(folder / "mined.jsonl", _lines(mined))
    tevatron = [
        {
            "query_id": f"q{i}",
            "query": q,
            "positive_passages": [{"docid": f"p{i}", "title": "", "text": p}],
            "negative_passages": [{"docid": f"p{(i - 1) % ROWS}", "title": "", "text": n}],
        }
        for i, (q, p, n) in enumerate(rows)
    ]
    _write(folder / "tevatron.jsonl", _lines(tevatron))
    _tables(folder, queries, passages)
    _judged(folder, queries, passages)
    _hub(folder, triplets)
    classes = [
        ("text", "label"),
        *((q, ("red", "green", "blue")[i % 3]) for i, q in enumerate(queries)),
    ]
    order = ["train", "train", "train", "dev", "dev", "dev", "test", "test", "test"]
    split = [("split",), *((order[i % 9],) for i in range(ROWS))]
    _write(folder / "classes.csv", _csv([a + b for a, b in zip(classes, split, strict=True)]))


def _tables(folder: pathlib.Path, queries, passages) -> None:
    ids = [f"d{i}" for i in range(ROWS)]
    document_ids = [[ids[i], ids[i - 1]] for i in range(ROWS)]
    _parquet(folder / "tables" / "train.parquet", query_id=ids, document_ids=document_ids)
    _parquet(folder / "tables" / "queries.parquet", query_id=ids, query=queries)
    _parquet(folder / "tables" / "documents.parquet", document_id=ids, document=passages)


SPLITS = {"train": range(16), "dev": range(16, 20), "test": range(20, ROWS)}


def _judged(folder: pathlib.Path, queries, passages) -> None:
    corpus = [{"_id": f"{i:03}", "title": "", "text": text} for i, text in enumerate(passages)]
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    files = {"corpus.jsonl": _lines(corpus), "queries.jsonl": _lines(asked)}
    for split, rows in SPLITS.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\t{i:03}\t1" for i in rows)]
        files[f"qrels/{split}.tsv"] = "\n".join(lines) + "\n"
    for name, text in files.items():
        _write(folder / "beir" / name, text)
        _write(folder / "beir-gz" / f"{name}.gz", gzip.compress(text.encode()))
    root = folder / "mteb"
    for name, table in (("corpus", corpus), ("queries", asked)):
        path = root / name / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table), path)
    for split, rows in SPLITS.items():
        _parquet(
            root / "data" / f"{split}-00000-of-00001.parquet",
            **{
                "query-id": [f"q{i}" for i in rows],
                "corpus-id": [f"{i:03}" for i in rows],
                "score": [1.0] * len(rows),
            },
        )


# A record of `beir` in TensorFlow Datasets.
EMPTY = {
    "query_id": "",
    "query": "",
    "query_metadata": "{}",
    "passage_id": "",
    "passage": "",
    "passage_metadata": "{}",
    "score": -1,
}


def prepare(folder, features, splits, form="array_record"):
    """Writes a data set as TensorFlow Datasets prepares it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import sequential_writer

    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=folder.parent.parent.name,
        version=folder.name,
        data_dir=str(folder),
        module_name="x",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = sequential_writer.SequentialWriter(info, 1000, file_format=form)
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_splits(list(splits))
    return folder


def make_prepared(folder: pathlib.Path, words) -> None:
    """Writes `prepared/`, BEIR as TensorFlow Datasets keeps it."""
    import tensorflow_datasets as tfds

    rows = texts(words)
    asked = [{"query_id": f"q{i}", "query": query} for i, (query, _, _) in enumerate(rows)]
    found = [{"passage_id": f"p{i:02}", "passage": text} for i, (_, text, _) in enumerate(rows)]
    splits = {"query": asked, "passage": found}
    for split, numbers in SPLITS.items():
        name = "validation" if split == "dev" else split
        splits[name] = [asked[i] | found[i] | {"score": 1.0} for i in numbers]
    splits = {split: [EMPTY | row for row in of_split] for split, of_split in splits.items()}
    columns = {name: tfds.features.Text() for name in EMPTY if name != "score"}
    made = prepare(folder / "beir" / "tiny" / "1.0.0", columns | {"score": np.float32}, splits)
    made.rename(folder / "prepared")


def _hub(folder: pathlib.Path, triplets: dict[str, list[str]]) -> None:
    table = pa.table(triplets)
    saved = folder / "saved"
    saved.mkdir()
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as sink:
        sink.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    _write(saved / "state.json", json.dumps(state))
    _write(saved / "dataset_info.json", "{}")
    for config in ("pair", "triplet"):
        columns = {name: triplets[name] for name in list(triplets)[: 2 + (config == "triplet")]}
        for split, rows in SPLITS.items():
            part = {name: [values[i] for i in rows] for name, values in columns.items()}
            _parquet(folder / "configs" / config / f"{split}-00000-of-00001.parquet", **part)

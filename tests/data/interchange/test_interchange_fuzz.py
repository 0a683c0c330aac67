"""Valid files, damaged at random: a reader succeeds or raises InputError, and nothing else."""

import contextlib
import json
import os
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from interchange_samples import example, target

from nvret_jax.data import interchange
from nvret_jax.errors import InputError

TEXT_ST = [name for name in interchange.FORMATS if name.startswith("st-")]
ROUNDS = int(os.environ.get("NVRET_FUZZ_ROUNDS", "30"))
ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    {"a": 1},
    ["p1"],
    10**30,
    "\ud800",
    [{"id": "p1"}],
    [{"docid": 1}],
    "\u2028",
    2**64,
    "[1",
    [1e308],
]


def make(name, folder):
    path = folder / "in.jsonl" if name.endswith("+jsonl") else target(name, folder, "in")
    name = name.removesuffix("+jsonl")
    content = example() if interchange.FORMATS[name].kind == "rows" else {"q": {"a": 2.0, "b": 1.0}}
    interchange.write(content, name, path, [].append)
    return path


def flip(data, rng):
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def cut(data, rng):
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 5, 50, len(data)])]
    return data


def repeat(data, rng):
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 7, 40])]
    data[start:start] = piece
    return data


def mutate_value(value, rng):
    """One value somewhere inside replaced, dropped, or added to."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        choice = rng.random()
        if choice < 0.25:
            del value[key]
        elif choice < 0.35:
            value[rng.choice(["", "id", "text", "pos_doc", key + "x"])] = rng.choice(ODD)
        else:
            value[key] = mutate_value(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.2:
            del value[at]
        elif choice < 0.4:
            value.append(rng.choice(ODD))
        else:
            value[at] = mutate_value(value[at], rng)
        return value
    return rng.choice(ODD)


def change(data, rng):
    """JSON stays JSON and means something else; anything else is cut."""
    try:
        if data.count(b"\n") > 1 and data[:1] == b"{" and b'"data"' not in data:
            lines = data.decode().split("\n")
            at = rng.randrange(len(lines) - 1)
            lines[at] = json.dumps(mutate_value(json.loads(lines[at]), rng))
            return "\n".join(lines).encode()
        return json.dumps(mutate_value(json.loads(data), rng)).encode()
    except ValueError:
        return cut(data, rng)


def read_or_refused(name, path, rng):
    """Whether it is read; what is read must be written, or refused, in turn."""
    out = path.parent / "out.parquet"
    try:
        content = interchange.read(name, path, [].append)
    except InputError:
        return False
    kind = interchange.FORMATS[name].kind
    goal = rng.choice([n for n, form in interchange.FORMATS.items() if form.kind == kind])
    with contextlib.suppress(InputError):
        interchange.write(content, goal, out, [].append)
        interchange.read(goal, out, [].append)
    if out.exists():
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    return True


@pytest.mark.parametrize("name", [*interchange.FORMATS, *(f"{name}+jsonl" for name in TEXT_ST)])
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    rng = random.Random(f"seed {name}")
    whole = make(name, tmp_path)
    is_folder = whole.is_dir()
    parts = sorted(p for p in whole.rglob("*") if p.is_file()) if is_folder else [whole]
    original = {part: part.read_bytes() for part in parts}
    refused = 0
    for _ in range(ROUNDS):
        part = rng.choice(parts)
        damage = rng.choice([flip, cut, repeat, change, change])
        part.write_bytes(bytes(damage(bytearray(original[part]), rng)))
        refused += not read_or_refused(name.removesuffix("+jsonl"), whole, rng)
        part.write_bytes(original[part])
    assert refused > ROUNDS // 10  # the damage is damage
    interchange.read(name.removesuffix("+jsonl"), whole, [].append)  # and was taken back


@pytest.mark.parametrize("name", ["three-table", "arctic", "nemo", "st-n-tuple-scores"])
def test_parquet_with_columns_of_other_types_is_read_or_refused(name, tmp_path):
    rng = random.Random(name)
    whole = make(name, tmp_path)
    parts = sorted(whole.rglob("*.parquet")) if whole.is_dir() else [whole]
    columns = [
        lambda n: pa.array([None] * n),
        lambda n: pa.array([b"\xff"] * n),
        lambda n: pa.array([1] * n, pa.int8()),
        lambda n: pa.array([2**63] * n, pa.uint64()),
        lambda n: pa.array([float("nan")] * n),
        lambda n: pa.array([[["p1"]]] * n),
        lambda n: pa.array([{"a": 1}] * n),
        lambda n: pa.array([10**18] * n, pa.timestamp("us")),
        lambda n: pa.array(["p1"] * n).dictionary_encode(),
        lambda n: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        lambda n: pa.array([["p1"] * 3] * n, pa.list_(pa.string(), 3)),
        lambda n: pa.array([[None, 1.0]] * n),
    ]
    for _ in range(ROUNDS):
        part = rng.choice(parts)
        before = part.read_bytes()
        table = pq.read_table(part)
        at = rng.randrange(table.num_columns)
        column = rng.choice(columns)(table.num_rows)
        pq.write_table(table.set_column(at, table.column_names[at], column), part)
        read_or_refused(name, whole, rng)
        part.write_bytes(before)

"""Every kind of export, read by the versions of sentence-transformers, transformers and PyLate
that people have: `make readers` installs them and prints the table.

Each reader reads all exports in one process of its own. What it cannot read, or reads with other
vectors, is what the model card says: the sentence there is the expectation here.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from nvret_jax.export import readers

pytestmark = pytest.mark.parity
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent / "readers")]
install = pytest.importorskip("install")
published = pytest.importorskip("published")

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent / ".readers"
BOUND = {"float32": 1e-5, "float16": 2e-3}
JOBS = [*published.KINDS, "LoRA, adapter"]


def _read(reader, jobs, out):
    folders = [ROOT / name for name in install.READERS[reader]]
    # Of this process only the environment's own packages: nothing of the package under test.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    env |= {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "readers" / "read.py"), str(jobs), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{reader}: {done.stderr[-3000:]}"
    with np.load(out) as found:
        return dict(found)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """(what each reader gave, {kind: (encoder, our vectors)})"""
    missing = [name for name in install.PACKAGES if not install.stamp(ROOT, name).exists()]
    if missing:
        message = f"{', '.join(missing)} not installed below {ROOT}; run: make readers"
        if os.environ.get("NVRET_READERS"):
            pytest.fail(message)
        pytest.skip(message)
    root = tmp_path_factory.mktemp("exports")
    jobs, ours = [], {}
    for job, encoder, vectors in published.exports(root):
        jobs.append(job)
        ours[job["name"]] = (encoder, vectors)
    path = root / "jobs.json"
    path.write_text(json.dumps({"jobs": jobs, "texts": published.TEXTS}))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        given = {
            reader: threads.submit(_read, reader, path, root / f"{number}.npz")
            for number, reader in enumerate(install.READERS)
        }
        given = {reader: found.result() for reader, found in given.items()}
    _write_table(given, ours)
    return given, ours


def _difference(given, at, ours):
    """max |difference| of a way of reading, or None where it failed or was not tried."""
    if f"{at}|query" not in given or f"{at}|error" in given or f"{at}|warning" in given:
        return None
    return max(
        float(np.abs(np.asarray(given[f"{at}|{kind}"], np.float32) - ours[kind]).max())
        if given[f"{at}|{kind}"].shape[-2:] == ours[kind].shape
        else np.inf
        for kind in ("query", "document")
    )


def _ways(given, name):
    return sorted({key.split("|")[1] for key in given if key.startswith(f"{name}|")})


def _write_table(given, ours):
    lines = [["kind", *given]]
    for name in JOBS:
        cells = []
        for found in given.values():
            of = {
                way: _difference(found, f"{name}|{way}", ours[name][1])
                for way in _ways(found, name)
            }
            values = [value for value in of.values() if value is not None]
            warned = any(f"{name}|{way}|warning" in found for way in of)
            refused = "warns" if warned else "refuses"
            cells.append(f"{max(values):.1e}" if values else refused if of else "")
        lines.append([name, *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    versions = {str(found["versions"]) for found in given.values()}
    (ROOT / "table.md").write_text(f"{text}\n{'; '.join(sorted(versions))}\n")


def _version(text, program):
    found = re.search(rf"(?<![\w-]){program} (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups()))


def _pools_the_end(sentence, versions, program):
    """Whether the card says that these versions pool a part of the prompt."""
    first = re.search(r"before (\d+)\.(\d+) it can pool the end of the prompt", sentence)
    return first is not None and _version(versions, program) < tuple(map(int, first.groups()))


def _reads(sentence, versions, program):
    """Whether the card's sentence about a program says that these versions read the export."""
    new = _version(versions, "transformers")[0] >= 5
    if "with transformers 5" in sentence and not new:
        return False
    first = re.match(r"from (\d+)\.(\d+)", sentence)
    if first is None:
        return sentence.startswith("4.57 and 5")
    return _version(versions, program) >= tuple(map(int, first.groups()))


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("reader", list(install.READERS))
def test_each_export_is_read_or_refused_as_its_card_says(matrix, reader, name):
    given, ours = matrix
    given = given[reader]
    encoder, vectors = ours[name]
    card = readers.describe(encoder.spec)
    versions = str(given["versions"])
    ways = _ways(given, name)
    if not ways:
        pytest.skip("PyLate reads late interaction alone")
    for way in ways:
        program = "sentence-transformers" if way == "tokens" else way
        if way == "tokens" and "PyLate" in reader:
            program = "PyLate"
        error = given.get(f"{name}|{way}|error", given.get(f"{name}|{way}|warning"))
        if not _reads(card[program], versions, program):
            assert error is not None, f"{way}: read, though the card says {card[program]!r}"
            continue
        assert error is None, f"{way}: {error}"
        bound = BOUND["float16" if "float16" in name else "float32"]
        difference = _difference(given, f"{name}|{way}", vectors)
        print(f"{reader}, {way}, {name}: {difference:.2e}")
        if _pools_the_end(card[program], versions, program):
            assert difference > bound, f"{way}: equal, though the card says {card[program]!r}"
        else:
            assert difference <= bound, way

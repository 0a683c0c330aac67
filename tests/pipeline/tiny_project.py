"""A data set, a model and a command line small enough to run the whole pipeline in seconds."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import safetensors.numpy

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]
import tiny_models  # noqa: E402
import virtual_devices  # noqa: E402

from nvret_jax.training import rates  # noqa: E402

PASSAGES, QUERIES = 96, 40


def make(folder: pathlib.Path) -> None:
    """Writes folder/data (BEIR layout) and folder/model."""
    rng = np.random.default_rng(0)
    words = np.array(tiny_models.WORDS)
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)

    def text(count: int) -> str:
        return " ".join(rng.choice(words, count))

    passages = [text(int(rng.integers(4, 30))) for _ in range(PASSAGES)]
    with (data / "corpus.jsonl").open("w") as file:
        for i, passage in enumerate(passages):
            file.write(json.dumps({"_id": f"p{i}", "title": "", "text": passage}) + "\n")
    with (data / "queries.jsonl").open("w") as file:
        for i in range(QUERIES):
            start = passages[2 * i].split()[:4]
            file.write(json.dumps({"_id": f"q{i}", "text": " ".join(start)}) + "\n")
    for split, rows in {
        "train": range(24),
        "dev": range(24, 30),
        "test": range(30, QUERIES),
    }.items():
        lines = ["query-id\tcorpus-id\tscore"]
        lines += [f"q{i}\tp{2 * i}\t1" for i in rows]
        lines += [f"q{i}\tp{2 * i + 1}\t1" for i in rows if i % 5 == 0]
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    make_model(folder / "model")


def make_model(folder: pathlib.Path, seed: int = 0) -> None:
    """A tiny BERT with mean pooling."""
    config = tiny_models.config()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_models.tokenizer_json()))
    safetensors.numpy.save_file(
        tiny_models.tensors(config, seed), folder / "model.safetensors", {"format": "pt"}
    )
    types = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{types}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{types}Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )


def overrides(folder: pathlib.Path) -> list[str]:
    """The config values of a tiny run, as command-line flags."""
    values = {
        "name": "tiny",
        "data.train": f"beir:{folder / 'data'}",
        "data.test": f"beir:{folder / 'data'}",
        "teacher.model": folder / "model",
        "student.model": folder / "model",
        "teacher.passage_length": 24,
        "teacher.query_length": 16,
        "student.passage_length": 24,
        "student.query_length": 16,
        "embed.chunk_rows": 16,
        "search.depth": 30,
        "search.query_block": 6,
        "train.batch_size": 8,
        "train.num_negatives": 3,
        "train.steps": 20,
        "train.learning_rate": 1e-3,
        "train.eval_every": 10,
        "train.checkpoint_every": 5,
        "train.log_every": 1,
        "train.dev_passages": 40,
        "export.max_length": 0,
        "report.examples": 3,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]


def start(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    *more: str,
    devices: int = 1,
    home: str | None = None,
    **popen,
) -> subprocess.Popen:
    """Starts the command; its output is line by line on stdout, errors with it."""
    env = virtual_devices.environment(devices, PYTHONUNBUFFERED="1")
    if home is not None:
        env["HOME"] = home
    command = [
        sys.executable,
        "-m",
        "nvret_jax.main",
        f"--config={ROOT / 'configs' / 'quickstart.py'}",
        f"--workdir={workdir}",
        *overrides(folder),
        *more,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def run(folder: pathlib.Path, workdir: pathlib.Path, *more: str, devices: int = 1) -> str:
    """Runs the command to its end and returns what it printed; AssertionError if it fails."""
    process = start(folder, workdir, *more, devices=devices)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def page(workdir: pathlib.Path) -> str:
    """report.html without its last section, which depends on the clock, and without its place."""
    text = (workdir / "report.html").read_text().split('<section aria-labelledby="setup">')[0]
    return re.sub(r"&#34;[^&]*/export&#34;", "EXPORT", text)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in rates.NAMES:
            line.pop(name, None)
    return lines

"""`python -m nvret_jax convert SOURCE TARGET`: training rows and runs between formats.

SOURCE and TARGET are `format:path`. A workdir is a source, too: the negatives mined in a run, with
the texts of the data set in its config. A line reports what a target cannot hold; the target
appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from etils import epath

from nvret_jax.artifacts.workdir import check_table
from nvret_jax.commands.options import Plain
from nvret_jax.commands.parser import Asked, Command, Word, entry
from nvret_jax.data import interchange
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.mining.exclude import verdicts
from nvret_jax.mining.negatives import Negatives
from nvret_jax.processes import log

_MORE = """\
SOURCE and TARGET are format:path, for example
  python -m nvret_jax convert flagembedding:train.jsonl st-triplet:out.parquet
  python -m nvret_jax convert workdir:runs/quickstart tevatron:train.jsonl
  python -m nvret_jax convert workdir:runs/quickstart questions:judge.jsonl
  python -m nvret_jax convert trec:run.trec msmarco:run.tsv
"""
_WORKDIR = "source only; a run's negatives: its workdir, or negatives/<split>.parquet in it"
_QUESTIONS = "target only; a run's negatives with their texts, for a judge to fill in"


def convert(source: str, target: str, *, say: Callable[[str], None] = print) -> None:
    """Reads one format and writes another.

    Args:
        source, target: 'format:path'; the formats are `interchange.FORMATS`, and 'workdir' as a
            source.
        say: called with lines about repairs, losses, and at the end about what was written.

    Raises:
        InputError: one line; an existing target is unchanged.
    """
    target_format, target_path = _parse(target, "target")
    if target_format == "workdir":
        raise InputError(f"target {target!r}: a workdir can only be a source")
    source_format, source_path = _parse(source, "source")
    if target_format == "questions":
        if source_format != "workdir":
            raise InputError(f"source {source!r}: 'questions' needs a workdir as its source")
        dataset, negatives = read_workdir(source_path)
        count = verdicts.write_questions(target_path, negatives, dataset.queries, dataset.corpus)
        say(f"{target_path}: {count:,} pairs for a judge; fill in 'verdict' and mine with it")
        return
    interchange.find(target_format)
    if source_format == "workdir":
        dataset, negatives = read_workdir(source_path)
        if sets := _sets(epath.Path(source_path).expanduser()):
            say(f"{source_path}: these are the negatives of data.train; further sets: {sets}")
        content = interchange.from_negatives(negatives, dataset.queries, dataset.corpus)
    else:
        kinds = interchange.find(source_format).kind, interchange.find(target_format).kind
        if kinds[0] != kinds[1]:
            raise InputError(
                f"source {source_format!r} holds {kinds[0]}, target {target_format!r} {kinds[1]}; "
                "a run has ids without texts, so neither converts to the other"
            )
        content = interchange.read(source_format, source_path, say)
    count = interchange.write(content, target_format, target_path, say)
    say(f"{target_path}: {_count(count, 'record')} as {target_format}, from {_size(content)}")


def _parse(spec: str, what: str) -> tuple[str, str]:
    name, colon, path = spec.partition(":")
    if not colon or not name or not path:
        raise InputError(f"{what} {spec!r}: expected format:path, such as flagembedding:a.jsonl")
    return name, path


def _size(content: interchange.Rows | interchange.TrecRun) -> str:
    if isinstance(content, interchange.Rows):
        positives = _count(len(content.positives.values), "positive")
        negatives = _count(len(content.negatives.values), "negative")
        return f"{_count(len(content), 'row')} with {positives} and {negatives}"
    hits = sum(map(len, content.values()))
    return f"{_count(hits, 'hit')} of {len(content):,} queries"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def read_workdir(path: epath.PathLike) -> tuple[Dataset, Negatives]:
    """The negatives mined in a run, and the data set they refer to.

    Args:
        path: the workdir (the training split of its config), or a negatives/<split>.parquet in it.

    Raises:
        InputError: no config.json, no negatives, or ids that are not in the data set.
    """
    path = paths.local(path, "workdir")
    workdir, table = path, None
    if path.suffix == ".parquet":
        workdir, table = path.parent.parent, path
    data = _data_of(workdir / "config.json")
    if table is None:
        table = workdir / "negatives" / f"{data['train_split']}.parquet"
    if not table.exists():
        if sets := _sets(workdir):
            raise InputError(f"{table}: no such file; name one of the sets of this run: {sets}")
        raise InputError(f"{table}: no such file; run the stage mine, which makes it")
    check_table(table, workdir)
    dataset = load_dataset(
        data["train"],
        splits=[],
        allow_empty=bool(data.get("allow_empty")),
        missing=data.get("missing", "error"),
    )
    return dataset, Negatives.read(table, dataset.queries, dataset.corpus)


def _sets(workdir: epath.Path) -> str:
    """The further sets that a run mined, as sources."""
    tables = (workdir / "sets").glob("*/negatives/*.parquet")
    return ", ".join(sorted({f"workdir:{table.parent.parent}" for table in tables}))


def _data_of(path: epath.Path) -> dict:
    """The part of a config with the place of the texts."""
    try:
        config = json.loads(path.read_text())
        data = config["data"]
        if not isinstance(data["train"], str) or not isinstance(data["train_split"], str):
            raise TypeError("data.train and data.train_split must be strings")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a workdir has one, written by its run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: is not the config of a run ({reason})") from None
    return data


def formats() -> str:
    """A line for each format, and the usage of the command."""
    every = {name: form.about for name, form in interchange.FORMATS.items()}
    every |= {"workdir": _WORKDIR, "questions": _QUESTIONS}
    lines = [line for name, about in every.items() for line in entry(name, about)]
    return f"{_MORE}\nformats:\n" + "\n".join(lines)


def run(asked: Asked) -> int:
    """Converts.

    Raises:
        InputError: as `convert`.
    """
    convert(*asked.words, say=log.say)
    return 0


COMMAND = Command(
    "Reads training rows or a run in one format and writes another. What the target cannot hold is "
    "reported. A file is replaced; a folder must be new or empty.",
    (Word("SOURCE", "What is read, format:path."), Word("TARGET", "What is written, format:path.")),
    Plain,
    run,
    formats(),
)

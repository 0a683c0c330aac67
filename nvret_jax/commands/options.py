"""The options of commands: a few special ones, and those of the packages under the same names."""

from __future__ import annotations

import dataclasses
from typing import Any

from nvret_jax.config import Config
from nvret_jax.data.options import SPLIT, Data
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.mining.options import Mining
from nvret_jax.models.options import EncoderOptions
from nvret_jax.options import block, choice, fields_of, flag, many, option, path, text, whole
from nvret_jax.search.options import Embed, Search

KINDS = ("passage", "query")
VECTOR_DTYPES = ("float32", "float16")
_NEW_FILE = path("a file", empty=True)


def same(cls: type, name: str, **changes: Any) -> Any:
    """A field that is an option of another dataclass.

    Args:
        cls: that dataclass.
        name: of its field.
        **changes: of `option`'s arguments, where this one differs.
    """
    one = fields_of(cls)[name]
    given = {"default": one.default, "takes": one.takes, "sentence": one.sentence, **changes}
    return option(given["default"], given["takes"], given["sentence"], counts=False)


@dataclasses.dataclass(frozen=True)
class Common:
    """What every command takes."""

    quiet: bool = option(
        False, flag(), "Print warnings, errors and the answer only: no progress and no bars."
    )
    log_file: str = option(
        "", _NEW_FILE, "A file to which every line is appended, too, with its time."
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """How the model of a command is read; what is unset is as its folder says."""

    query_length: int = same(EncoderOptions, "query_length")
    passage_length: int = same(EncoderOptions, "passage_length")
    query_prompt: str | None = same(EncoderOptions, "query_prompt")
    passage_prompt: str | None = same(EncoderOptions, "passage_prompt")
    pooling: str | None = same(EncoderOptions, "pooling")
    normalize: bool = same(EncoderOptions, "normalize")
    adapter: str = same(
        EncoderOptions, "adapter", sentence="A folder with an adapter in PEFT's format."
    )
    dtype: str = same(
        Embed,
        "dtype",
        sentence="Products of the encoder; auto: bfloat16 on accelerators, else float32.",
    )
    download: bool = same(Config, "download")


@dataclasses.dataclass(frozen=True)
class Source:
    """How the data of a command are read."""

    allow_empty: bool = same(Data, "allow_empty")
    missing: str = same(Data, "missing")


@dataclasses.dataclass(frozen=True)
class Train:
    """A run of a config."""

    workdir: str = option("", path("a folder", empty=True), "Folder for everything the run makes.")
    stages: tuple[str, ...] = option(
        (), many(text("the name of a stage")), "Only these stages, separated by commas."
    )
    dry_run: bool = option(False, flag(), "Print which stages are out of date and why.")
    plan: str = option(
        "",
        text("a topology, such as v5p:4x4x4 or h100:8", empty=True),
        "Compile for a topology such as v5p:4x4x4 and print what fits; run nothing.",
    )
    plan_passages: int = option(
        0, whole(0, what="0 for the config's own"), "Passages that --plan assumes."
    )
    plan_data: bool = option(
        False, flag(), "Plan training at the lengths of the config's texts, too: reads its data."
    )
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of a config, or of a search alone."""

    topology: str = option(
        "",
        text("a topology, such as v5e:4x4, v5p:4x4x4 or h100:8"),
        "Which chips, such as v5e:4x4, v5p:4x4x4 or h100:8.",
    )
    passages: int = option(0, whole(0), "Passages of the corpus; 0: the config's.")
    data: bool = option(False, flag(), "Plan training at the lengths of the config's texts, too.")
    width: int = option(
        0, whole(0, 1 << 20), "Of a search alone, without a config: numbers per vector."
    )
    dtype: str = option(
        "bfloat16", choice("float32", "bfloat16"), "Of a search alone: what vectors are."
    )
    queries: int = option(4096, whole(1), "Of a search alone: queries at a time.")
    k: int = option(100, whole(1), "Of a search alone: hits per query.")
    memory_gib: float = same(
        Search,
        "memory_gib",
        sentence="Of a search alone: memory it may take of a chip; 0: what is free.",
    )
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How a model is scored."""

    split: str = option("test", SPLIT, "The split of each data set that is scored.")
    before: str = option(
        "",
        path("a folder or a hub id", empty=True),
        "Another model, such as the one before training: both are scored, with the difference.",
    )
    output: str = option(
        "",
        path("a folder", empty=True),
        "A folder for <data>.json, with the scores per query, and <data>.trec, the ranking.",
    )
    model: Model = block(Model, flat=True)
    how: EvaluationOptions = block(EvaluationOptions, flat=True)
    backend: str = same(Search, "backend")
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class EmbedTexts:
    """How texts become a file of vectors."""

    kind: str = option("passage", choice(*KINDS), "Whose prompt and length the texts get.")
    column: str = option(
        "",
        text("the name of a column", empty=True),
        "The column of the texts in a file; '': the first of the usual names.",
    )
    id_column: str = option(
        "",
        text("the name of a column", empty=True),
        "The column of their ids; '': id, _id and the like, or else the number of the row.",
    )
    split: str = option(
        "",
        text("the name of a split", empty=True, without="/"),
        "Of a data set's queries, only those of this split.",
    )
    store: str = option("float32", choice(*VECTOR_DTYPES), "What the numbers are stored as.")
    texts: bool = option(False, flag(), "Put the texts into the file, too (parquet).")
    model: Model = block(Model, flat=True)
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class SearchTexts:
    """How a corpus is searched."""

    k: int = option(10, whole(1, 1000), "Passages shown per query.")
    before: str = option(
        "",
        path("a folder or a hub id", empty=True),
        "Another model, whose results are shown beside; of a run's workdir the one that it "
        "started from, unless this is ''.",
    )
    queries: str = option(
        "",
        path("a file", empty=True),
        "A file of queries to answer, one per line or a table; '': they are typed.",
    )
    output: str = option(
        "",
        _NEW_FILE,
        "With --queries: a file for the results, .jsonl with texts or .trec; '': print them.",
    )
    vectors: str = option(
        "",
        path("a file", empty=True),
        "The corpus as `embed` wrote it with MODEL; '': it is embedded now.",
    )
    web: bool = option(False, flag(), "Serve a page at 127.0.0.1, for a browser on this machine.")
    port: int = option(8765, whole(0, 65535, "0 for any that is free"), "The port of the page.")
    column: str = same(EmbedTexts, "column")
    id_column: str = same(EmbedTexts, "id_column")
    model: Model = block(Model, flat=True)
    backend: str = same(Search, "backend")
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Mine:
    """How negatives are mined; all of mining is as in a config."""

    teacher: str = option(
        EncoderOptions.model,
        EncoderOptions.__dataclass_fields__["model"].metadata["option"]["takes"],
        "What ranks the passages: a folder, a hub id, 'bm25:', 'vectors:DIR' or 'run:FILE'.",
    )
    split: str = option("train", SPLIT, "The split whose queries are mined for.")
    depth: int = same(Search, "depth")
    workdir: str = option(
        "",
        path("a folder", empty=True),
        "Where work is kept, so that it can continue after an interruption; '': nowhere.",
    )
    seed: int = same(Config, "seed")
    download: bool = same(Config, "download")
    mining: Mining = block(Mining, flat=True)
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Plain:
    """No options but the common ones."""

    common: Common = block(Common, flat=True)

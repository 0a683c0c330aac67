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
        **changes: changed arguments of `option`.
    """
    one = fields_of(cls)[name]
    given = {"default": one.default, "takes": one.takes, "sentence": one.sentence, **changes}
    return option(given["default"], given["takes"], given["sentence"], counts=False)


@dataclasses.dataclass(frozen=True)
class Common:
    """The options of every command."""

    quiet: bool = option(
        False, flag(), "Print only warnings, errors and the result, without progress bars."
    )
    log_file: str = option(
        "", _NEW_FILE, "A file to which every line is appended, too, with its time."
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """Options for reading the model of a command; unset values are those of its folder."""

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
    """Options for reading the data of a command."""

    allow_empty: bool = same(Data, "allow_empty")
    missing: str = same(Data, "missing")


@dataclasses.dataclass(frozen=True)
class Train:
    """A run of a config."""

    workdir: str = option("", path("a folder", empty=True), "Folder for the run's output.")
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
        False,
        flag(),
        "Also plan training at the lengths of the config's texts, whose data are read.",
    )
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of a config, or only of a search."""

    topology: str = option(
        "",
        text("a topology, such as v5e:4x4, v5p:4x4x4 or h100:8"),
        "The chips, such as v5e:4x4, v5p:4x4x4 or h100:8.",
    )
    stages: tuple[str, ...] = same(Train, "stages")
    passages: int = option(0, whole(0), "Passages of the corpus; 0: the config's.")
    data: bool = option(False, flag(), "Also plan training at the lengths of the config's texts.")
    width: int = option(
        0, whole(0, 1 << 20), "Only for a search without a config: numbers per vector."
    )
    dtype: str = option(
        "bfloat16", choice("float32", "bfloat16"), "Only for a search: dtype of the vectors."
    )
    queries: int = option(4096, whole(1), "Only for a search: queries at a time.")
    k: int = option(100, whole(1), "Only for a search: hits per query.")
    memory_gib: float = same(
        Search,
        "memory_gib",
        sentence="Only for a search: memory that it may use per chip; 0: the free memory.",
    )
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How a model is scored."""

    split: str = option("test", SPLIT, "The split of each data set to score.")
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
    """Options for embedding texts into a file of vectors."""

    kind: str = option(
        "passage", choice(*KINDS), "The kind of texts, which decides prompt and length."
    )
    column: str = option(
        "",
        text("the name of a column", empty=True),
        "The column of the texts in a file; '': the first of the usual names.",
    )
    id_column: str = option(
        "",
        text("the name of a column", empty=True),
        "The column of their ids; '': id, _id or a similar name, or else the number of the row.",
    )
    split: str = option(
        "",
        text("the name of a split", empty=True, without="/"),
        "Of a data set's queries, only those of this split.",
    )
    store: str = option("float32", choice(*VECTOR_DTYPES), "The stored number type.")
    texts: bool = option(False, flag(), "Also put the texts into the file (parquet).")
    model: Model = block(Model, flat=True)
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class SearchTexts:
    """Options for searching a corpus."""

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
        "A file of queries, one per line or a table; '': queries are typed.",
    )
    output: str = option(
        "",
        _NEW_FILE,
        "With --queries: a file for the results, .jsonl with texts or .trec; '': print them.",
    )
    vectors: str = option(
        "",
        path("a file", empty=True),
        "Vectors of the corpus, written by `embed` with MODEL; '': it is embedded now.",
    )
    web: bool = option(False, flag(), "Serve a page at 127.0.0.1, for a browser on this machine.")
    port: int = option(8765, whole(0, 65535, "0 for any free port"), "The port of the page.")
    column: str = same(EmbedTexts, "column")
    id_column: str = same(EmbedTexts, "id_column")
    model: Model = block(Model, flat=True)
    backend: str = same(Search, "backend")
    source: Source = block(Source, flat=True)
    common: Common = block(Common, flat=True)


@dataclasses.dataclass(frozen=True)
class Mine:
    """Options for mining negatives, with all mining options of a config."""

    teacher: str = option(
        EncoderOptions.model,
        EncoderOptions.__dataclass_fields__["model"].metadata["option"]["takes"],
        "The teacher that ranks passages: a folder, a hub id, 'bm25:', 'vectors:DIR' or "
        "'run:FILE'.",
    )
    split: str = option("train", SPLIT, "The split with the queries.")
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
    """Only the common options."""

    common: Common = block(Common, flat=True)

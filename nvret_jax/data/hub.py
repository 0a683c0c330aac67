"""`hf:`, data sets of the Hugging Face hub, and folders in its layouts, without its `datasets`.

    hf:mteb/scifact                        a corpus, queries and judgments
    hf:sentence-transformers/all-nli?config=triplet&revision=main
    hf:data/my-set                         a local folder: files, or what `save_to_disk` wrote

Files are grouped by, in this order: the `configs:` of README.md; the metadata of `save_to_disk`
(`dataset_dict.json`, `state.json`); the names of files and folders (`data/train-00000-of-00001…`,
`corpus.jsonl`, `qrels/test.tsv`, `<config>/<split>/0000.parquet`). A data set with only a loading
script, which libraries no longer run, is read from the branch `refs/convert/parquet`. Configs named
like a corpus and queries make a set with judgments (`judged`); any other config is a table of pairs
or triplets (`pairs`), with the same options. Ids are text, even if a file's ids look like numbers.
Nothing is downloaded unless `download` allows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from etils import epath

from nvret_jax.data import splits as splits_lib
from nvret_jax.data.dataset import Asked, Dataset, safe_name
from nvret_jax.data.folding import kept
from nvret_jax.data.judged import read_judged
from nvret_jax.data.pairs import OPTIONS, fold_tables
from nvret_jax.errors import InputError
from nvret_jax.files.lines import read_text, stem
from nvret_jax.files.records import LAYOUT, READERS, Records, layout_of, open_records
from nvret_jax.files.source import Source, parse

CONVERTED = "refs/convert/parquet"
Configs = dict[str, dict[str, list[str]]]  # config -> split -> files, relative to the folder
_SKIPPED = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")
_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_PART = re.compile(r"[-_.]?\d+(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")  # of a file in several parts


def read_hub(source: Source, asked: Asked) -> Dataset:
    """Reads a folder, or a data set of the hub.

    Raises:
        InputError: no data set of this name, an ambiguous config, or mistakes in the rows.
    """
    source.check((*OPTIONS, "config", "revision", "qrels"))
    folder = epath.Path(source.place)
    if folder.is_file():
        raise InputError(f"{source.shown}: is a file; read it as 'pairs:{source.place}'")
    if not folder.is_dir():
        folder = _snapshot(source, source.place, source.options.get("revision"), asked.download)
    configs = find_configs(folder)
    if not configs:
        raise InputError(f"{source.shown}: no file of data in {folder}")
    name = safe_name(source.place.rstrip("/").partition("@")[0].rpartition("/")[2])
    parts = _judged_parts(configs, source.options.get("config", ""))
    if parts is not None:
        return _read_judged(source, asked, folder, name, configs, parts)
    config = _one_config(source, configs)
    found = configs[config]
    alone = len(found) == 1 and splits_lib.of_name(next(iter(found))) is None
    tables = [
        (records, None if alone else _split(split))
        for split, files in found.items()
        for records in _open(source, folder, files)
    ]
    return fold_tables(source, asked, tables, name)


def _split(name: str) -> str:
    return splits_lib.usual(name)


def _open(source: Source, folder: epath.Path, files: Sequence[str]) -> list[Records]:
    what = "rows of the data set"
    return [open_records(folder / file, what, layout_of(source)) for file in files]


# --- files and their configs ---------------------------------------------------------------------


def find_configs(folder: epath.Path) -> Configs:
    """The configs of a folder, their splits and their files."""
    files = sorted(str(path.relative_to(folder)) for path in _walk(folder))
    return _of_readme(folder / "README.md", files) or _saved(folder, files) or _by_names(files)


def _walk(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in folder.iterdir():
        if path.name.startswith((".", "_")):
            continue
        found += _walk(path) if path.is_dir() else [path]
    return found


def _is_data(file: str) -> bool:
    path = epath.Path(file)
    suffix = stem(path)[1]
    return suffix in READERS and suffix != ".txt" and path.name not in _SKIPPED


def _of_readme(readme: epath.Path, files: Sequence[str]) -> Configs:
    """The `configs:` in the front matter of README.md; empty without one."""
    if not readme.exists():
        return {}
    text = read_text(readme, "a description of the data set")
    match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if not match:
        return {}
    import yaml

    try:
        said = (yaml.safe_load(match[1]) or {}).get("configs") or []
    except (yaml.YAMLError, AttributeError):
        return {}
    found: Configs = {}
    for config in said if isinstance(said, list) else []:
        if not isinstance(config, dict):
            continue
        prefix = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
        entries = config.get("data_files") or [{"split": None, "path": f"{prefix}**"}]
        splits: dict[str, list[str]] = {}
        for entry in entries if isinstance(entries, list) else [entries]:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            patterns = entry.get("path") or []
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                named = pattern if entry["split"] is None else prefix + pattern
                for file in _matching(files, named):
                    split = entry["split"] or _split_of(file)
                    splits.setdefault(str(split), []).append(file)
        if splits:
            found[str(config.get("config_name", "default"))] = splits
    return found


def _matching(files: Sequence[str], pattern: str) -> list[str]:
    """Files that match a pattern; '*' stops at a '/', as in `datasets`, and '**' does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./").strip("/"))
    wanted = re.compile("".join(_GLOB.get(part) or re.escape(part) for part in parts))
    return [file for file in files if _is_data(file) and wanted.fullmatch(file)]


def _saved(folder: epath.Path, files: Sequence[str]) -> Configs:
    """The output of `save_to_disk`: a data set, or a folder for each split."""
    states = [file for file in files if epath.Path(file).name == "state.json"]
    splits: dict[str, list[str]] = {}
    for state in states:
        place = state.rpartition("/")[0]
        said = json.loads(read_text(folder / state, "the files of a data set"))
        names = [entry["filename"] for entry in said.get("_data_files", [])]
        at = f"{place}/" if place else ""
        splits[place.rpartition("/")[2] or "data"] = [at + name for name in names]
    return {"default": splits} if splits else {}


def _by_names(files: Sequence[str]) -> Configs:
    """Configs by the names of files and folders."""
    found: Configs = {}
    for file in filter(_is_data, files):
        folders, name = file.split("/")[:-1], stem(epath.Path(file))[0]
        base = _PART.sub("", name) or (folders[-1] if folders else name)
        if base in ("corpus", "queries"):
            config, split = base, base
        else:
            config = next((f for f in folders if f != "data" and not _says_split(f)), "default")
            split = base if _says_split(base) else next(filter(_says_split, folders), base)
        found.setdefault(config, {}).setdefault(split, []).append(file)
    return found


def _says_split(name: str) -> bool:
    return splits_lib.of_name(name) is not None


def _split_of(file: str) -> str:
    return next(iter(next(iter(_by_names([file]).values()))))


# --- choice of a config --------------------------------------------------------------------------


def _judged_parts(configs: Configs, asked: str) -> tuple[str, str, str] | None:
    """The configs with corpus, queries and judgments ('' if these are elsewhere), or None."""

    def named(*words: str) -> list[str]:
        found = [c for c in configs if any(word in re.split(r"[-_]", c.lower()) for word in words)]
        if asked and asked not in configs:  # one language of several
            return [c for c in found if asked in c] or found
        return found

    corpus, queries = named("corpus", "corpora"), named("queries", "query")
    if asked in configs and asked not in corpus + queries and not _is_rest(asked):
        return None
    if len(corpus) != 1 or len(queries) != 1:
        return None
    rest = [c for c in configs if c not in corpus + queries]
    judgments = named("qrels") or [c for c in rest if _is_rest(c)] or rest
    if len(judgments) > 1:
        judgments = [c for c in judgments if asked and asked in c]
    return corpus[0], queries[0], judgments[0] if judgments else ""


def _is_rest(config: str) -> bool:
    return config in ("default", "qrels") or config.endswith("qrels")


def _one_config(source: Source, configs: Mapping[str, object]) -> str:
    asked = source.options.get("config")
    if asked is not None and asked not in configs:
        there = ", ".join(configs)
        raise InputError(f"{source.shown}: no config '{asked}'; configs: {there}")
    if asked is not None or len(configs) == 1:
        return asked or next(iter(configs))
    if "default" in configs:
        return "default"
    there = ", ".join(configs)
    first = next(iter(configs))
    raise InputError(f"{source.shown}: has the configs {there}; name one, as in ?config={first}")


def _read_judged(
    source: Source,
    asked: Asked,
    folder: epath.Path,
    name: str,
    configs: Configs,
    parts: tuple[str, str, str],
) -> Dataset:
    source.check(("config", "revision", "qrels", *LAYOUT))
    corpus, queries, judgments = parts
    place, found = folder, configs.get(judgments, {})
    if "qrels" in source.options or not found:
        # The oldest sets have their judgments in a separate repository.
        other = source.options.get("qrels") or f"{source.place.partition('@')[0]}-qrels"
        place = epath.Path(other)
        if not place.is_dir():
            place = _snapshot(source, other, None, asked.download)
        found = next(iter(find_configs(place).values()), {})
    found = {_split(split): files for split, files in found.items()}

    def all_of(config: str) -> list[Records]:
        files = [file for files in configs[config].values() for file in files]
        return _open(source, folder, files)

    wanted = kept(found, asked.splits, source.shown)
    tables = {split: _open(source, place, files) for split, files in wanted.items()}
    return read_judged(name, all_of(corpus), all_of(queries), tables, asked)


# --- the hub -------------------------------------------------------------------------------------


def folder_of(spec: str, download: bool) -> epath.Path:
    """The folder of 'hf:FOLDER' or 'hf:OWNER/NAME?revision=…', or of a path.

    Raises:
        InputError: it is not there, or the hub cannot be reached.
    """
    source = parse(spec if spec.startswith("hf:") else f"hf:{spec}")
    folder = epath.Path(source.place)
    if folder.is_dir():
        return folder
    return _snapshot(source, source.place, source.options.get("revision"), download)


def _snapshot(source: Source, name: str, revision: str | None, download: bool) -> epath.Path:
    """The folder of a data set of the hub, from its cache or over the network.

    Raises:
        InputError: it is not there, or the hub cannot be reached.
    """
    name, _, said = name.partition("@")
    revision = revision or said or None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) or name.startswith("."):
        raise InputError(f"{source.shown}: no such folder")
    import huggingface_hub
    from huggingface_hub import errors

    what = {"repo_type": "dataset", "revision": revision}
    try:
        if not download:
            found = huggingface_hub.snapshot_download(name, local_files_only=True, **what)
            return epath.Path(found)
        files = huggingface_hub.HfApi().list_repo_files(name, **what)
        if not any(map(_is_data, files)) and revision is None:
            return _snapshot(source, name, CONVERTED, download)
        meta = [file for file in files if epath.Path(file).name in (*_SKIPPED, "README.md")]
        wanted = meta + [file for file in files if _is_data(file) and _is_meant(source, file)]
        return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, **what))
    except errors.HFValidationError as error:
        raise InputError(f"{source.shown}: not a valid hub id ({error})") from None
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{source.shown}: no such folder, and not in the local Hugging Face cache; allow the "
            "hub with download=True (--config.download=true)"
        ) from None
    except errors.HfHubHTTPError as error:
        raise InputError(f"{source.shown}: the hub refused it ({error})") from None
    except InputError:
        raise
    except Exception as error:  # network errors of any library
        raise InputError(f"{source.shown}: the hub cannot be reached ({error})") from None


def _is_meant(source: Source, file: str) -> bool:
    """Whether a file may belong to the requested config: others are not downloaded."""
    asked = source.options.get("config")
    folders = file.split("/")[:-1]
    return not asked or not folders or asked in file or folders[0] in ("data", "corpus", "queries")

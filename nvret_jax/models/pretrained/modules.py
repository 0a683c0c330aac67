"""The modules that sentence-transformers chains: modules.json and the folder of each module.

A folder without modules.json is a backbone alone. Both spellings of a pooling config are
understood: the old booleans (`pooling_mode_mean_tokens`) and today's `pooling_mode`. A module or a
setting that would change the embedding and that is not computed here is refused, never skipped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.pooling import OF_FOLDERS, DenseConfig, check_pooling
from nvret_jax.models.pretrained.folder import Fields, inside, read_json, read_object, shown

OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MOST = 100  # modules; a chain as people train it has five
PYLATE_DENSE = ("pylate.models.Dense.Dense", "pylate.models.Dense")


@dataclasses.dataclass
class Modules:
    """What modules.json lists; folders are relative to the model's.

    Attributes:
        listed: whether there is a modules.json.
        backbone, pooling, dense: folders of these modules.
        mask: folder of the mask of a late-interaction model.
        normalize: whether a module gives vectors unit length.
    """

    listed: bool = False
    backbone: str = ""
    pooling: str | None = None
    dense: list[str] = dataclasses.field(default_factory=list)
    mask: str | None = None
    normalize: bool = False


def read_modules(folder: epath.Path, late: bool) -> Modules:
    """Reads modules.json; without one, the folder is a backbone alone."""
    path, found = inside(folder, "modules.json"), Modules()
    if not path.exists():
        return found
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise InputError(f"{path}: expected a list of modules")
    if not listed:
        raise InputError(f"{path}: lists no module; copy or download it again")
    if len(listed) > _MOST:
        raise InputError(f"{path}: lists {len(listed):,} modules; at most {_MOST} are read")
    found.listed = True
    for number, module in enumerate(listed):
        fields = Fields(module)
        kind, where = fields.text("type", ""), fields.text("path", "")
        fields.check(f"{path}: module {number}")
        inside(folder, where, path)
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith("sentence_transformers.") and kind not in PYLATE_DENSE:
            raise InputError(
                f"{path}: module {number} is {shown(kind)}; code of a model is never run"
            )
        if name == "Transformer" and number == 0:
            found.backbone = where
        elif name == "Pooling" and number == 1:
            found.pooling = None if late else where
        elif name == "Dense" and number and not found.normalize:
            found.dense.append(where)
        elif name == "MultiVectorMask" and late:
            found.mask = where
        elif name == "Normalize" and number:
            _check_input(read_object(folder, config_of(where)), late, folder, where)
            found.normalize = True
        else:
            raise InputError(
                f"{path}: module {number} is {shown(name)}; supported: Transformer, Pooling, "
                "then optionally Dense and Normalize (late interaction: Transformer, Dense)"
            )
    return found


def config_of(module: str) -> str:
    """The name of a module's config.json, relative to the model's folder."""
    return f"{module}/config.json" if module else "config.json"


def _check_input(config: dict[str, Any], late: bool, folder: epath.Path, module: str) -> None:
    """Raises InputError for a module that works on another of the features than its place says."""
    fields = Fields(config)
    plain = ("sentence_embedding", *(("token_embeddings",) if late else ()))
    for name in ("module_input_name", "module_output_name"):
        fields.only(name, plain)
    fields.check(folder / config_of(module))


def read_pooling(folder: epath.Path, module: str | None) -> tuple[str | None, bool | None]:
    """(mode, whether the prompt is pooled too); None where the folder does not say."""
    if module is None:
        return None, None
    name = config_of(module)
    path = inside(folder, name)
    if not path.exists():
        raise InputError(
            f"{path}: no such file, though modules.json lists a Pooling module; the folder is not "
            "whole: copy or download it again"
        )
    config = read_object(folder, name)
    fields = Fields(config)
    fields.known(
        (
            "word_embedding_dimension",
            "embedding_dimension",
            "pooling_mode",
            "include_prompt",
            *OLD_POOLING,
        )
    )
    include = fields.flag("include_prompt", None)
    active = [mode for key, mode in OLD_POOLING.items() if fields.flag(key)]
    mode = config.get("pooling_mode")
    if mode is None:
        mode = active
    if isinstance(mode, list) and all(isinstance(m, str) for m in mode):
        if len(mode) > 1:
            fields.wrong.append(f"pools {' + '.join(mode)}; supported: one at a time")
        mode = mode[0] if mode else None
    if mode is not None and not isinstance(mode, str):
        fields.wrong.append(f"pooling_mode={shown(mode)}, expected a string")
    fields.check(path)
    if mode is not None:
        check_pooling(mode, str(path), OF_FOLDERS)
    return mode, include


def read_dense(
    folder: epath.Path, names: list[str], width: int, late: bool
) -> tuple[DenseConfig, ...]:
    """The Dense modules in these folders, the first of which takes vectors of `width`."""
    found = []
    for name in names:
        path = inside(folder, config_of(name))
        if not path.exists():
            raise InputError(f"{path}: no such file, though modules.json lists a Dense module")
        config = read_object(folder, config_of(name))
        _check_input(config, late, folder, name)
        found.append(DenseConfig.from_folder(config, width, str(path)))
        width = found[-1].out_features
    return tuple(found)

"""Parts of artefacts that are made of several values: mining's options, exclusions, files.

See `run.py` for which artefact has which parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.mining.exclusion import Settings
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import VALUES
from nvret_jax.models.weights import file_sha256


def mining_parts(options: Options) -> dict[str, Any]:
    """The options that matter together: a value counts where the rule or the draw reads it."""
    rule = options.rule
    parts: dict[str, Any] = {"rule": rule.name, "num_negatives": options.num_negatives}
    parts |= {VALUES[name]: getattr(rule, VALUES[name]) for name in rule.names if VALUES[name]}
    if rule.needs_anchor or rule.anchor == "own":
        parts["anchor"] = rule.anchor
    if rule.ranks_to_skip or rule.max_rank:
        parts |= {"ranks": rule.ranks, "max_rank": rule.max_rank}
    if rule.keep_equal and rule.needs_anchor:
        parts["keep_equal"] = True
    if np.isfinite(rule.min_score):
        parts["min_score"] = rule.min_score
    if options.sampling != "top":
        parts["sampling"] = [options.sampling, options.sample_from, options.seed]
        if options.sampling != "uniform":
            parts["sample_temperature"] = options.sample_temperature
    return parts | {
        "ensemble": [options.ensemble, options.seed if options.ensemble == "cross" else 0],
        "short": [options.short, options.seed if options.short == "random" else 0],
        "second_search": options.second_search,
        "window": options.window,
    }


def exclusion_parts(settings: Settings) -> dict[str, Any]:
    """What is never a negative; a map of documents by its content, wherever it lies."""
    parts = dataclasses.asdict(settings)
    if settings.document_map:
        parts["document_map"] = file_digest(settings.document_map)
    return parts


def folder_digest(path: str) -> list[str]:
    """A folder of weights that the config names: its path and, of a model, its weights' hash."""
    folder = epath.Path(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; give a model's or one of checkpoints")
    files = sorted(folder.glob("*.safetensors"))
    return [str(path), *(file_sha256(file) for file in files)]


def file_digest(path: str) -> str:
    """sha256 of a file that the config names."""
    try:
        return file_sha256(epath.Path(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None

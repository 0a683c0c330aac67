"""Every path that a config names, looked at before anything is read."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from nvret_jax import paths
from nvret_jax.config import flat_keys
from nvret_jax.errors import InputError

# Keys, by their last part, whose value is a path, or has one behind a word and a colon.
_PATHS = ("adapter", "document_map", "merge_with", "start", "verdicts")
_WITH_A_WORD = ("model", "source", "test", "train")
_WORDS = ("beir", "examples", "labels", "run", "sts", "vectors")


def check_paths(config: ConfigDict) -> list[str]:
    """What is wrong with the paths of a config, each with its key."""
    wrong = []
    for key, path in _named(config):
        try:
            paths.local(path, key)
        except InputError as error:
            wrong.append(str(error))
    return wrong


def _named(config: ConfigDict) -> Iterator[tuple[str, str]]:
    for key in flat_keys(config):
        *blocks, leaf = key.split(".")
        node = config
        for block in blocks:
            node = node[block]
        for value in node[leaf] if isinstance(node[leaf], tuple) else (node[leaf],):
            if not isinstance(value, str):
                continue
            word, colon, rest = value.partition(":")
            if leaf in _PATHS:
                yield key, value
            elif leaf in _WITH_A_WORD:
                yield key, rest if colon and word in _WORDS else value

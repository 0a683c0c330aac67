"""The kinds of teachers, and what the ranking of one depends on.

`model` of a teacher's block says what kind it is:

    a folder, package or hub id    one of our encoders
    bm25:                          BM25 over the texts
    random:                        the paper's baseline: negatives drawn at random
    vectors:DIR                    vectors that somebody else computed (search/rankers/vectors.py)
    run:FILE                       a ranking that somebody else made (search/rankers/run_file.py)

Only encoders have embeddings in the workdir; the others are read or indexed where they are needed
(`pipeline/ranked.py`).
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nvret_jax.artifacts.fingerprints import Digest
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models.pretrained.weights import file_sha256
from nvret_jax.search.rankers import vectors
from nvret_jax.search.rankers.bm25 import WORDS_VERSION

SCHEMES = ("bm25", "random", "vectors", "run")


def kind(model: str) -> str:
    """'encoder' or one of `SCHEMES`.

    Raises:
        InputError: something stands, or is missing, behind the colon.
    """
    scheme, colon, rest = model.partition(":")
    if not colon and scheme in SCHEMES and not os.path.exists(model):
        raise InputError(f"teacher {model!r}: no such folder; write '{scheme}:' for the ranker")
    if not colon or scheme not in SCHEMES:
        return "encoder"
    if scheme in ("bm25", "random") and rest:
        raise InputError(f"teacher {model!r}: '{scheme}:' takes nothing after the colon")
    if scheme in ("vectors", "run") and not rest:
        what = "a folder" if scheme == "vectors" else "a file"
        raise InputError(f"teacher {model!r}: name {what}, as in '{scheme}:/data/teacher'")
    return scheme


def parts(
    at: str, block: ConfigDict, texts: Mapping[str, Any], *, seed: int, same_text: bool
) -> dict[str, Any]:
    """What the ranking of a teacher without embeddings is a function of, positives aside.

    Args:
        at: the key of its block.
        block: its options.
        texts: the parts 'passages' and 'queries'.
        seed: of draws.
        same_text: whether equal texts are one passage.
    """
    scheme, rest = kind(block.model), block.model.partition(":")[2]
    keys = (f"{at}.model",)
    found = {"kind": Digest(scheme, f"the kind of {keys[0]}", keys), **texts}
    if scheme == "bm25":
        made_by = importlib.metadata.version("bm25s")
        return found | {"the version of bm25s": made_by, "the words of BM25": WORDS_VERSION}
    if scheme == "random":
        return found | {"seed": seed, "mining.exclude.same_text": same_text}
    if scheme == "vectors":
        read = Digest(vectors.fingerprint(rest), f"the files of {keys[0]}", keys)
        return found | {keys[0]: read, f"{at}.normalize": block.normalize}
    try:
        read = file_sha256(paths.local(rest, "run"))
    except OSError as error:
        raise InputError(f"{rest}: cannot be read ({error.strerror or error})") from None
    return found | {keys[0]: Digest(read, f"the file of {keys[0]}", keys)}

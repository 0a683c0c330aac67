"""`python -m nvret_jax mine DATA TARGET`: mines hard negatives for training data.

It runs the stages embed, search and mine in a workdir, and `convert` on the result.
"""

from __future__ import annotations

import shlex
import tempfile

from ml_collections import ConfigDict

from nvret_jax import config as config_lib
from nvret_jax.commands import convert, models
from nvret_jax.commands.options import Mine
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.config import checks
from nvret_jax.data import interchange
from nvret_jax.data.load import ROW_FORMATS, with_scheme
from nvret_jax.errors import InputError
from nvret_jax.mining.options import Mining
from nvret_jax.options import blocks
from nvret_jax.processes import log

_STAGES = ("embed", "search", "mine")
_MORE = """\
TARGET is format:path, in any format that `convert` writes, for example
  python -m nvret_jax mine beir:mine flagembedding:train.jsonl --percent=0.95
  python -m nvret_jax mine faq.csv st-triplet:train.parquet --teacher=bm25:
Several teachers, sets with different rules and the audit need a config; see
docs/mining.md.
"""


def run(asked: Asked) -> int:
    """Mines, and writes the target.

    Raises:
        InputError: mistakes in data, teacher, target or options; one line.
    """
    source, target = asked.words
    form, _, path = target.partition(":")
    if not path:
        raise InputError(f"mine: TARGET {target!r}: expected format:path (see convert --help)")
    if interchange.find(form).kind != "rows":
        raise InputError(f"mine: TARGET {target!r}: {form} holds ids without texts")
    config = _config(source, asked)
    checks.validate(config)
    from nvret_jax import pipeline  # seconds of imports

    given = asked.options
    with tempfile.TemporaryDirectory(prefix="nvret_jax-mine-") as aside:
        workdir = given.workdir or aside
        pipeline.run(config, workdir, stages=_STAGES, closing=bool(given.workdir))
        convert.convert(f"workdir:{workdir}", target, say=log.say)
    if form in ROW_FORMATS:
        log.say("next      train on exactly these negatives:")
        log.say("          python -m nvret_jax train --config=configs/own.py --workdir=DIR \\")
        log.say(f"            --config.data.train={shlex.quote(target)} --config.mining.given=only")
    return 0


def _config(source: str, asked: Asked) -> ConfigDict:
    """The config of the run that mines."""
    given: Mine = asked.options
    config = config_lib.base()
    config.name = "mine"
    config.stages = _STAGES
    config.seed, config.download = given.seed, given.download
    config.data.train = with_scheme(source)
    config.data.train_split = given.split
    config.data.dev_split = config.data.test = ""
    config.data.allow_empty = given.source.allow_empty
    config.data.missing = given.source.missing
    config.teacher.model = models.named(given.teacher)
    config.search.depth = given.depth
    keys = dict(blocks.entries(Mining))
    for key, value in asked.given.items():
        if key in keys:
            block = config.mining
            *inside, leaf = key.split(".")
            for name in inside:
                block = block[name]
            with block.ignore_type():
                block[leaf] = value
    return config


COMMAND = Command(
    "Ranks the corpus for each training query and keeps hard negatives below the score of its "
    "positives. Options of mining are those of a config (`options mining` lists their values).",
    (
        Word("DATA", "A data set with positives, such as beir:DIR or pairs:FILE."),
        Word("TARGET", "The output, format:path."),
    ),
    Mine,
    run,
    _MORE,
)

"""A teacher that was fine-tuned on the set's dev queries beside the same one as published.

Needs NVRET_TUNED, a folder of models by the name of the set, each made before by one run:

    python -m nvret_jax.main --config=configs/own.py --workdir=runs/tuned-medquad \\
        --config.data.train=beir:$NVRET_DATA/medquad --config.data.train_split=dev \\
        --config.student.model=sentence-transformers/all-MiniLM-L6-v2
"""

import dataclasses

from benchmarks.lab.grid import Grid, Values
from benchmarks.lab.grids.beyond import FITTED, KL, PERC_POS, RULES

SETS = ("banking77", "medquad")


def lengths(values: Values) -> Values:
    """The lengths of the published teacher for the other one, too."""
    return {
        f"teachers.tuned.{name}": values[f"teacher.{name}"]
        for name in ("query_length", "passage_length")
    }


GRID: Grid = dataclasses.replace(
    RULES,
    sets={
        name: dataclasses.replace(
            RULES.sets[name],
            values=RULES.sets[name].values
            | lengths(RULES.sets[name].values)
            | {"teachers.tuned.model": f"$NVRET_TUNED/{name}"},
        )
        for name in SETS
    },
    axes={
        "method": {
            "L6": PERC_POS | {"mining.teachers": ("teacher",)},
            "L6_kl_28": FITTED | KL | {"mining.teachers": ("teacher",)},
            "tuned": PERC_POS | {"mining.teachers": ("tuned",)},
            "tuned_kl_28": FITTED | KL | {"mining.teachers": ("tuned",)},
        }
    },
    teachers=dict(RULES.teachers) | {"tuned": ""},
    baseline=("method", "L6"),
    second="L6_kl_28",
    without=(),
)

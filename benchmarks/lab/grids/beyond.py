"""Options beside the paper's, each against TopK-PercPos 95 % with the best 4.

The sets, lengths and length of training are those of the grid of rules, so that its cells count.
"""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.rules import GRID as RULES

PERC_POS = {"mining.rule": "perc_pos", "mining.percent": 0.95}
POOL = PERC_POS | {"mining.num_negatives": 30}
# 16 negatives per query, where distillation also needs those that a rule keeps out.
WIDE = {"mining.rule": "naive", "mining.num_negatives": 16, "train.num_negatives": 16}
KL = {"train.loss.distillation": "kl"}
RISK = {"mining.rule": "naive", "mining.risk": "auto"}

GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "teacher": {"L6": RULES.axes["teacher"]["L6"]},
        "method": {
            "perc_pos": PERC_POS,
            "draw_uniform": POOL | {"train.draw.how": "uniform"},
            "draw_softmax": POOL | {"train.draw.how": "softmax"},
            "draw_simans": POOL | {"train.draw.how": "simans"},
            "budget_5": RISK | {"mining.risk_budget": 0.05},
            "budget_20": RISK | {"mining.risk_budget": 0.2},
            "weights": RISK | {"train.loss.weights": True},
            "perc_pos_weights": RISK | PERC_POS | {"train.loss.weights": True},
            "kl": PERC_POS | {"train.loss.distillation": "kl"},
            "kl_alone_16": WIDE | KL | {"train.loss.contrastive_weight": 0.0},
            "kl_16": PERC_POS | {k: v for k, v in WIDE.items() if k != "mining.rule"} | KL,
            "doubtful": PERC_POS | {"mining.positives.max_rank": 50},
        },
    },
    baseline=("method", "perc_pos"),
    second="",
    without=(),
)

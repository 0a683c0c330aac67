"""Options beside the paper's, each against TopK-PercPos 95 % with the best 4.

The sets, lengths and length of training are those of the grid of rules, so that its cells count.
"""

import dataclasses

from benchmarks.lab.grid import Grid, Values
from benchmarks.lab.grids.rules import GRID as RULES

PERC_POS = {"mining.rule": "perc_pos", "mining.percent": 0.95}
POOL = PERC_POS | {"mining.num_negatives": 30}
# 16 negatives per query, where distillation also needs those that a rule keeps out.
WIDE = {"mining.rule": "naive", "mining.num_negatives": 16, "train.num_negatives": 16}
KL = {"train.loss.distillation": "kl"}
# 28 candidates beside the 4 negatives, which the student is fitted to and not contrasted with.
FITTED = PERC_POS | {"mining.num_distilled": 28, "train.num_distilled": 28}
SOFT = {
    "train.loss.teacher_temperature": 0.1,
    "train.loss.student_temperature": 0.1,
    "train.loss.distillation_weight": 0.3,
}
RISK = {"mining.rule": "naive", "mining.risk": "auto"}
VECTORS = PERC_POS | {"train.loss.vectors": "cosine"}
VECTORS_ALONE = VECTORS | {"train.loss.contrastive_weight": 0.0}
TURNED = {"student.projection": 384}  # begins nearest to the guide's vectors
WEIGHTS = {"train.loss.weights": True}
TWO_WAY = {"train.loss.terms": ("query_to_passage", "passage_to_query")}
# The rule of mining, applied to passages of other rows: those that score above 95 % of the positive
# are no negatives, by the student's own scores or by the teacher's.
MASK = {"train.loss.score_mask": "percent", "train.loss.percent": 0.95}
GUIDE = MASK | {"train.loss.mask_by": "guide"}
GUIDE_MARGIN = GUIDE | {"train.loss.score_mask": "margin", "train.loss.margin": -0.05}


def negatives(count: int) -> Values:
    """Negatives per query, mined and in a batch."""
    return {"mining.num_negatives": count, "train.num_negatives": count}


def budget(share: float) -> Values:
    """The hardest negatives with this expected share of false ones."""
    return RISK | {"mining.risk_budget": share}


def clusters(size: int) -> Values:
    """Batches of similar queries; those of the linear student have 32."""
    return {"train.cluster_size": size}


GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "teacher": {"L6": RULES.axes["teacher"]["L6"]},
        "method": {
            "perc_pos": PERC_POS,
            "draw_uniform": POOL | {"train.draw.how": "uniform"},
            "draw_softmax": POOL | {"train.draw.how": "softmax"},
            "draw_simans": POOL | {"train.draw.how": "simans"},
            "negatives_1": PERC_POS | negatives(1),
            "negatives_2": PERC_POS | negatives(2),
            "negatives_8": PERC_POS | negatives(8),
            "negatives_16": PERC_POS | negatives(16),
            "mask_student": PERC_POS | MASK,
            "mask_guide": PERC_POS | GUIDE,
            "mask_guide_margin": PERC_POS | GUIDE_MARGIN,
            "mask_guide_16": PERC_POS | GUIDE | negatives(16),
            "mask_guide_hard": {"mining.rule": "naive"} | GUIDE | {"train.loss.mask_hard": True},
            "budget_5": budget(0.05),
            "budget_20": budget(0.2),
            "budget_20_8": budget(0.2) | negatives(8),
            "budget_20_guide": budget(0.2) | GUIDE,
            "budget_20_8_guide": budget(0.2) | GUIDE | negatives(8),
            "weights": RISK | WEIGHTS,
            "weights_guide": RISK | WEIGHTS | GUIDE,
            "perc_pos_weights": RISK | PERC_POS | WEIGHTS,
            "perc_pos_weights_guide": RISK | PERC_POS | WEIGHTS | GUIDE,
            "two_way": PERC_POS | TWO_WAY,
            "two_way_guide": PERC_POS | TWO_WAY | GUIDE,
            "temperature_2": PERC_POS | {"train.temperature": 0.02},
            "temperature_2_guide": PERC_POS | GUIDE | {"train.temperature": 0.02},
            "temperature_10": PERC_POS | {"train.temperature": 0.1},
            "kl": PERC_POS | KL,
            "kl_alone_16": WIDE | KL | {"train.loss.contrastive_weight": 0.0},
            "kl_16": PERC_POS | {k: v for k, v in WIDE.items() if k != "mining.rule"} | KL,
            "kl_28": FITTED | KL,
            "kl_28_soft": FITTED | KL | SOFT,
            "kl_28_alone": FITTED | KL | {"train.loss.contrastive_weight": 0.0},
            "margin_mse_28": FITTED | {"train.loss.distillation": "margin_mse"},
            "vectors_alone": VECTORS_ALONE,
            "vectors_2": VECTORS | {"train.loss.vectors_weight": 2.0},
            "vectors_alone_turned": VECTORS_ALONE | TURNED,
            "vectors_2_turned": VECTORS | TURNED | {"train.loss.vectors_weight": 2.0},
            "vectors_20_turned": VECTORS | TURNED | {"train.loss.vectors_weight": 20.0},
            "clustered": PERC_POS | clusters(32),
            "clustered_guide": PERC_POS | GUIDE | clusters(32),
            "clustered_8_guide": PERC_POS | GUIDE | clusters(8),
            "doubtful": PERC_POS | {"mining.positives.max_rank": 50},
        },
    },
    baseline=("method", "perc_pos"),
    second="",
    without=(),
)

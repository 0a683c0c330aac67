"""The paper's rules at its values (Table 3), with random negatives and an oracle, by teacher.

One positive of each training query is left visible where the data set has several, so that false
negatives are there to be mined and are known. The oracle is naive mining without the hidden
positives: what is left to gain by any rule. Evaluations are of a part of the large sets, see
`sets.cut`: the same for all cells. Needs NVRET_DATA, a folder of BEIR folders, and
NVRET_STUDENT, a small model.
"""

from benchmarks.lab.grid import HIDDEN, DataSet, Grid


def lengths(query: int, passage: int, teacher: int) -> dict[str, int]:
    """Config values: tokens of queries, of the student's passages and of the teachers'."""
    return {
        "student.query_length": query,
        "student.passage_length": passage,
        "export.max_length": max(query, passage),
        "teacher.query_length": query,
        "teacher.passage_length": teacher,
        "teachers.l3.query_length": query,
        "teachers.l3.passage_length": passage,  # the student itself
    }


SHORT = lengths(32, 32, 32)
FEW = {"train": 1500, "dev": 100, "test": 600}

GRID = Grid(
    sets={
        "banking77": DataSet(
            "beir:$NVRET_DATA/banking77",
            visible=True,
            values=SHORT,
            queries={"train": 1500, "test": 600},
        ),
        "cranfield": DataSet(
            "beir:$NVRET_DATA/cranfield", visible=True, values=lengths(48, 64, 256)
        ),
        "medquad": DataSet(
            "beir:$NVRET_DATA/medquad",
            visible=True,
            values=lengths(24, 64, 64) | {"evaluation.min_relevance": 2},
            queries=FEW,
            passages=2000,
        ),
        "squad": DataSet(
            "beir:$NVRET_DATA/squad", values=lengths(24, 48, 64), queries=FEW, passages=2000
        ),
        "scifact": DataSet("beir:$NVRET_DATA/scifact", values=lengths(32, 64, 128), passages=1500),
    },
    axes={
        "teacher": {
            "L6": {"mining.teachers": ("teacher",)},
            "BM25": {"mining.teachers": ("bm25",)},
            "L3": {"mining.teachers": ("l3",)},
        },
        "rule": {
            "naive": {"mining.rule": "naive"},
            "perc_pos": {"mining.rule": "perc_pos", "mining.percent": 0.95},
            "oracle": {
                "mining.rule": "naive",
                "mining.verdicts": HIDDEN,
                "mining.verdict_mode": "remove",
            },
            "random": {"mining.teachers": ("random",), "mining.rule": "naive"},
            "margin_pos": {"mining.rule": "margin_pos", "mining.margin": 0.05},
            "shifted": {"mining.rule": "shifted", "mining.shift": 10},
            "abs": {"mining.rule": "abs", "mining.threshold": 0.7},
        },
    },
    values={
        "student.model": "$NVRET_STUDENT",
        "mining.num_negatives": 4,
        "train.num_negatives": 4,
        "train.batch_size": 16,
        "train.steps": 30,
        "train.learning_rate": 5e-5,
        "train.eval_every": 10,
        "train.dev_passages": 400,
        "train.dev_queries": 100,
        # A batch is small: nothing is encoded twice to save memory.
        "train.recompute": False,
    },
    teachers={"bm25": "bm25:", "random": "random:", "l3": "$NVRET_STUDENT"},
    baseline=("rule", "naive"),
    second="perc_pos",
    # A threshold for cosines says nothing about BM25's scores.
    without=({"rule": "abs", "teacher": "BM25"},),
)

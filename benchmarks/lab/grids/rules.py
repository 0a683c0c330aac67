"""The paper's rules at its values (Table 3), with random negatives and an oracle, by teacher.

One positive of each training query is left visible where the data set has several, so that false
negatives are there to be mined and are known. The oracle is naive mining without the hidden
positives: what is left to gain by any rule. Needs NVRET_DATA, a folder of BEIR folders, and
NVRET_STUDENT, a small model.
"""

from benchmarks.lab.grid import HIDDEN, DataSet, Grid

SHORT = {"student.query_length": 32, "student.passage_length": 32}
SHORT |= {"teacher.query_length": 32, "teacher.passage_length": 32, "export.max_length": 32}
LONG = {"student.query_length": 48, "student.passage_length": 128}
LONG |= {"teacher.query_length": 48, "teacher.passage_length": 256, "export.max_length": 128}

GRID = Grid(
    sets={
        "banking77": DataSet("beir:$NVRET_DATA/banking77", visible=True, values=SHORT),
        "cranfield": DataSet("beir:$NVRET_DATA/cranfield", visible=True, values=LONG),
        "scifact": DataSet("beir:$NVRET_DATA/scifact", values=LONG),
    },
    axes={
        "teacher": {
            "L6": {"mining.teachers": ("teacher",)},
            "BM25": {"mining.teachers": ("bm25",)},
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
        "train.steps": 60,
        "train.learning_rate": 5e-5,
        "train.eval_every": 20,
        "train.dev_passages": 500,
        "train.dev_queries": 100,
        # Small batches of short texts: encoded once, whole.
        "train.chunk_tokens": -1,
        "train.recompute": False,
    },
    teachers={"bm25": "bm25:", "random": "random:"},
    baseline=("rule", "naive"),
    second="perc_pos",
    # A threshold for cosines says nothing about BM25's scores.
    without=({"rule": "abs", "teacher": "BM25"},),
)

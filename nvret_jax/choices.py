"""The words a config may choose from; the modules that act on them have the same lists."""

STAGES = ("embed", "search", "audit", "mine", "train", "evaluate", "export", "report")
DEFAULT_STAGES = tuple(stage for stage in STAGES if stage != "audit")
RULES = ("naive", "shifted", "abs", "margin_pos", "perc_pos")
ANCHORS = ("own", "min", "max", "mean")
RANKS = ("raw", "survivors")
COMPAT = ("", "paper", "sentence_transformers")
SAMPLINGS = ("top", "uniform", "softmax", "top1_softmax")
ENSEMBLES = ("cross", "intra", "intra_dedup", "union", "rrf")
SHORT = ("ragged", "drop", "random")
OWN_TEXT = ("normalized", "strip", "off")
VERDICT_MODES = ("relabel", "remove", "remove_query")
BACKENDS = ("auto", "device", "faiss")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("float32", "bfloat16")
PROMPT_IN_POOLING = ("all", "none", "last")
MAX_SEED = 2**31 - 1

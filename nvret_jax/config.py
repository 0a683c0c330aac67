"""Every knob of a run, its default and one comment; and one check that names all mistakes at once.

A config file in `configs/` calls `base()`, changes what its experiment is about, and returns the
result. On the command line any value can be overridden: `--config.mining.percent=0.9`. `smoke()`
shrinks whatever it is given to about a minute. `validate()` runs before anything else does.
"""

from __future__ import annotations

import difflib

from ml_collections import ConfigDict, config_dict

from nvret_jax.choices import (
    BACKENDS,
    DEFAULT_STAGES,
    DTYPES,
    MAX_SEED,
    PROMPT_IN_POOLING,
    SCHEDULES,
    STAGES,
)
from nvret_jax.errors import InputError
from nvret_jax.mining_checks import check_mining


def encoder(model: str = "sentence-transformers/all-MiniLM-L6-v2") -> ConfigDict:
    """The knobs of one encoder; `teacher` and `student` each have their own."""
    return ConfigDict(
        {
            # A folder, the name of a pip-installed weights package, or a Hugging Face hub id. A
            # teacher may also be 'bm25:', 'random:', 'vectors:DIR' or 'run:FILE' (docs/mining.md).
            "model": model,
            # Tokens kept of a query and of a passage, special tokens included; 0: the model's own.
            "query_length": 0,
            "passage_length": 0,
            # Text put before every query and every passage; unset: the model's own prompts.
            "query_prompt": config_dict.placeholder(str),
            "passage_prompt": config_dict.placeholder(str),
            # 'mean', 'cls' or 'lasttoken'; unset: the model's own 1_Pooling.
            "pooling": config_dict.placeholder(str),
            # Which tokens of a prompt are pooled: all, none, or but the last of them ('last',
            # NV-Embed's way); unset: as the model does.
            "prompt_in_pooling": config_dict.placeholder(str),
            # Of a decoder: whether tokens see what comes after them; unset: as the model does.
            "bidirectional": config_dict.placeholder(bool),
            # L2-normalise embeddings: scores are cosines, which mining values and temperatures
            # are meant for. False: inner products of whatever the pooling gives.
            "normalize": True,
            # Arithmetic of the encoder: 'float32', or 'bfloat16' on accelerators.
            "dtype": "float32",
            # LoRA, for the student: train adapters of this rank beside frozen weights; 0: train
            # all weights. Decoders and ModernBERT take them.
            "lora_rank": 0,
            # What an adapter adds is multiplied by lora_alpha / lora_rank.
            "lora_alpha": 32.0,
            # Share of an adapter's input dropped in training.
            "lora_dropout": 0.0,
            # Which modules get one, by their Hugging Face names, such as ('q_proj', 'v_proj').
            "lora_targets": ("all-linear",),
            # A folder with an adapter in PEFT's format, put on the model; a student trains it
            # further. '': none.
            "adapter": "",
        }
    )


def base() -> ConfigDict:
    """The default config: mine with MiniLM, train it, evaluate, export; see each comment."""
    return ConfigDict(
        {
            # Names the experiment; a workdir belongs to one name.
            "name": "base",
            # Seeds every draw: batch order, which positive, dropout.
            "seed": 0,
            # Which stages run, whatever order they are written in.
            "stages": DEFAULT_STAGES,
            # Fetch hub models over the network; off means local files and the local cache only.
            "download": False,
            "data": {
                # Where to read from: 'beir:DIR' or 'pydocs:'.
                "train": "pydocs:",
                "train_split": "train",
                # Queries that guide training; '' for the split: no dev evaluation. Same data set.
                "dev_split": "dev",
                # What is evaluated before and after.
                "test": "pydocs:",
                "test_split": "test",
                # Judgments from this grade on are positives to train on (evaluation is graded).
                "min_relevance": 1,
                # Accept passages and queries without text instead of refusing the data set.
                "allow_empty": False,
                # Use only the first n queries of a split, and n passages (judged ones first);
                # 0: all.
                "max_queries": 0,
                "max_passages": 0,
            },
            "teacher": encoder(),
            "student": encoder(),
            # More teachers by name, each made by `encoder(...)`; see `add_teacher`.
            "teachers": {},
            "rescorer": {
                # A cross-encoder that scores candidates anew (a folder or a hub id); '': none.
                "model": "",
                # Candidates of each query it may score, best first.
                "depth": 50,
                # 'teacher': keeps the teacher's order and scores until enough negatives are found;
                # 'rescored': scores all `depth` candidates and ranks by the new scores.
                "order": "teacher",
                # Tokens kept of a pair; 0: the model's own.
                "length": 0,
                "dtype": "float32",
            },
            "mesh": {
                # Axis sizes; -1 takes the devices that are left. See nvret_jax/mesh.py.
                "data": -1,
                "fsdp": 1,
                "tensor": 1,
            },
            "distributed": {
                # 'auto': join a cluster where JAX detects one; 'on': must join; 'off': run alone.
                "mode": "auto",
                # host:port of process 0, the number of processes and this one's number, for
                # clusters that JAX cannot detect.
                "coordinator": "",
                "num_processes": 0,
                "process_id": 0,
            },
            "embed": {
                # Rows a chunk of the stored embeddings holds: what a kill can cost.
                "chunk_rows": 4096,
                # Tokens a device encodes at a time; 0: chosen for the device.
                "token_budget": 0,
            },
            "search": {
                # 'device': sharded matmul and top-k; 'faiss': flat index on the CPU; 'auto': the
                # device on an accelerator, FAISS on a CPU-only host.
                "backend": "auto",
                # Candidates stored per training query, best first, before any rule.
                "depth": 100,
                # Queries searched between two saves.
                "query_block": 4096,
                # Memory a device may spend on passages, scores and lists; passages that do not fit
                # are streamed from disk. 0: a share of what the device has free.
                "memory_gib": 0.0,
            },
            "mining": {
                # Which teachers, the most accurate first: 'teacher' and names in `teachers`.
                "teachers": ("teacher",),
                # naive, shifted, abs, margin_pos or perc_pos (paper section 3.1), or several joined
                # by '+': the lowest ceiling wins.
                "rule": "perc_pos",
                # perc_pos: keep negatives that score below this share of the anchor; 'auto':
                # calibrated for each teacher.
                "percent": number(0.95),
                # margin_pos: keep negatives that score below the anchor minus this; or 'auto'.
                "margin": number(0.05),
                # abs: keep negatives that score at most this.
                "threshold": 0.70,
                # shifted: ranks to skip.
                "shift": 10,
                # Which positive score is the anchor: the min, max or mean of the query's, or own:
                # each positive is mined for by itself.
                "anchor": "min",
                # What shift and max_rank count: 'raw' the teacher's ranks, 'survivors' those left.
                "ranks": "raw",
                # Ranks beyond this one are never negatives; 0: no bound.
                "max_rank": 0,
                # Scores below this are never negatives; unset: no bound.
                "min_score": config_dict.placeholder(float),
                # Keep a score equal to the ceiling (the paper does not).
                "keep_equal": False,
                # Choices of others as a preset, over the values here: '', paper or
                # sentence_transformers.
                "compat": "",
                # Hard negatives kept per query.
                "num_negatives": 4,
                # Which survivors: top, uniform, softmax or top1_softmax (paper section 4.3.2); a
                # draw is among the `sample_from` best, softmax of scores over the temperature.
                "sampling": "top",
                "sample_from": 10,
                "sample_temperature": 1.0,
                # How several teachers' negatives become one list: cross, intra, intra_dedup (paper
                # section 4.2), union or rrf.
                "ensemble": "intra_dedup",
                # Search below the ceiling for queries that the stored candidates leave short.
                "second_search": True,
                # A query for which the whole corpus has too few: 'ragged' keeps what there is,
                # 'drop' drops it, 'random' fills up at random.
                "short": "ragged",
                # A judge's verdicts on (query, passage) pairs, a jsonl, csv, tsv or parquet file.
                "verdicts": "",
                # What they do: relabel (to positive, or drop), remove, remove_query.
                "verdict_mode": "relabel",
                # Drop a query with more negatives than this judged positive; 0: never.
                "max_promoted": 0,
                "calibration": {
                    # 'auto' picks the least strict value whose share of false negatives stays
                    # under this.
                    "target": 0.05,
                    # Queries looked at; 0: all.
                    "queries": 2000,
                },
                # Passages that are never a query's negatives, besides judged positives.
                "exclude": {
                    # Equal to the query's own text: 'normalized' but for case, width and
                    # punctuation, 'strip' but for white space around it, 'off'.
                    "own_text": "normalized",
                    # Equal to a positive's normalised text.
                    "same_text": True,
                    # Cosine to a positive from which a passage is a copy of it; 0: off.
                    "near_copy": 0.0,
                    # The same by words: share of common word triples; 0: off.
                    "minhash": 0.0,
                    # Of a positive's document: what stands between document and part in a passage
                    # id, such as '#'; or a file of passage id <tab> document id; '': off.
                    "document_separator": "",
                    "document_map": "",
                },
            },
            "audit": {
                # Rules and their values, teachers are `mining.teachers`; see mining/audit.py.
                "percents": (0.8, 0.85, 0.9, 0.95, 0.98, 1.0, 1.05),
                "margins": (0.0, 0.05, 0.1, 0.15, 0.2),
                "thresholds": (0.4, 0.5, 0.6, 0.7, 0.8),
                "shifts": (5, 10, 20, 50),
                # Queries looked at; 0: all with at least two positives.
                "queries": 0,
                # Resamples behind each interval.
                "resamples": 2000,
            },
            "train": {
                # Length of training: epochs over the training queries, unless steps is set.
                "epochs": 1.0,
                "steps": 0,
                # Queries per step, over the whole mesh.
                "batch_size": 32,
                # Hard negatives per query in a batch; rows with fewer are masked.
                "num_negatives": 4,
                # Also contrast with the passages of all other queries in the global batch.
                "in_batch_negatives": True,
                # Divides the cosine; smaller is sharper.
                "temperature": 0.05,
                # The rest of the loss (docs/training.md); training/losses.py has the fields.
                "loss": {
                    # Pairs between rows that count: query_to_passage always; passage_to_query,
                    # query_to_query, passage_to_passage.
                    "terms": ("query_to_passage",),
                    # 'joint': one softmax over all terms; 'separate': the query's and the
                    # passage's apart.
                    "partition": "joint",
                    # Positives of a query in a batch, and how several count: 'each', 'pooled'.
                    "num_positives": 1,
                    "positives": "each",
                    # A hard negative that comes again with another row counts once.
                    "mask_own_duplicates": False,
                    # No in-batch negative scores this near the positive: '', 'margin', 'percent';
                    # by the student's own scores, or by a guide's, the first encoder teacher.
                    "score_mask": "",
                    "margin": 0.0,
                    "percent": 0.95,
                    "mask_by": "student",
                    # The score mask also covers a row's own hard negatives.
                    "mask_hard": False,
                    # 'gather': all passages on every device; 'ring': they travel, in tiles of so
                    # many pairs (0: chosen for the device), and the score matrix never exists.
                    "method": "gather",
                    "tile_pairs": 0,
                    # Above 0: temperature is learned at this rate, down to a least one.
                    "temperature_learning_rate": 0.0,
                    "temperature_min": 0.01,
                    # Matryoshka: prefixes of the embedding that are trained, and their weights.
                    "dims": (),
                    "dim_weights": (),
                    # Also fit the teacher's scores of a row: '', 'kl', 'margin_mse'.
                    "distillation": "",
                    "contrastive_weight": 1.0,
                    "distillation_weight": 1.0,
                    "teacher_temperature": 1.0,
                    "student_temperature": 0.0,
                },
                "learning_rate": 2e-5,
                # Share of the steps over which the learning rate rises, then how it falls.
                "warmup": 0.1,
                "schedule": "linear",
                "weight_decay": 0.01,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                # Largest global gradient norm; 0: no clipping.
                "clip_norm": 1.0,
                # Share of activations dropped; 0 suits short contrastive runs.
                "dropout": 0.0,
                # Tokens a device encodes at a time inside a step, recomputing them for the
                # gradient; 0: chosen for the device; -1: the whole batch at once.
                "chunk_tokens": 0,
                # Steps between checkpoints, dev evaluations and logged lines; 0: only at the end.
                "checkpoint_every": 100,
                "eval_every": 50,
                "log_every": 1,
                # Checkpoints kept.
                "keep": 2,
                # Dev evaluation searches at most this many passages: the positives, then what the
                # teacher ranks high, then others; 0: the whole corpus.
                "dev_passages": 2000,
                "dev_queries": 200,
            },
            "evaluation": {
                # Passages retrieved per query; recall@100 needs 100.
                "depth": 100,
                # Judgments from this grade on count as relevant; lower ones gain nothing.
                "min_relevance": 1,
                # Drop a passage that carries the query's own id, as BEIR does.
                "exclude_self": True,
            },
            "export": {
                # Precision of the exported weights: float32 or float16.
                "dtype": "float32",
            },
            "report": {
                # Training queries shown with what was kept and what was thrown out.
                "examples": 20,
            },
        }
    ).lock()  # a key that is not above is a typing mistake


def number(value: float) -> config_dict.FieldReference:
    """A default that a number or the word 'auto' may replace."""
    return config_dict.FieldReference(value, field_type=object)


def add_teacher(config: ConfigDict, name: str, model: str, **changes) -> ConfigDict:
    """Adds a teacher under a name; `mining.teachers` says which are used, and in which order.

    Args:
        name: letters, digits, '-' and '_'; also a folder in the workdir.
        model: as `teacher.model`.
        **changes: other values of the block.

    Returns:
        The block.
    """
    block = encoder(model)
    block.update(changes)
    with config.unlocked():
        config.teachers[name] = block
    return config.teachers[name]


def flat_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """All keys that hold values, such as 'train.batch_size', sorted in each block."""
    out: list[str] = []
    for key in config:
        if isinstance(config[key], ConfigDict):
            out += flat_keys(config[key], f"{prefix}{key}.")
        else:
            out.append(prefix + key)
    return out


def near(config: ConfigDict, key: str) -> str:
    """'; did you mean …?' for a key that is not there, or ''."""
    known, leaf = flat_keys(config), key.rsplit(".", 1)[-1]
    found = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    found = found or difflib.get_close_matches(key, known, 2, cutoff=0.8)
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to a run of about a minute on two cores; changes it and returns it."""
    config.name += "-smoke"
    config.data.max_queries = 48
    config.data.max_passages = 400
    for side in (config.teacher, config.student):
        side.query_length = min(side.query_length or 32, 32)
        side.passage_length = min(side.passage_length or 64, 64)
    config.embed.chunk_rows = 128
    config.search.depth = 30
    config.search.query_block = 16
    for key, value in (("percent", 0.95), ("margin", 0.05)):
        if config.mining[key] == "auto":  # which takes more queries than there are
            config.mining[key] = value
    config.audit.resamples = min(config.audit.resamples, 200)
    config.train.batch_size = 8
    config.train.num_negatives = min(config.train.num_negatives, 2)
    config.train.steps = 12
    config.train.checkpoint_every = 4
    config.train.eval_every = 6
    config.train.log_every = 1
    config.train.dev_passages = 200
    config.train.dev_queries = 32
    config.report.examples = 5
    return config


def apply_arg(config: ConfigDict, arg: str | None) -> ConfigDict:
    """What stands behind the colon of `--config=configs/x.py:smoke`.

    Raises:
        InputError: a word that is not known.
    """
    if not arg:
        return config
    if arg != "smoke":
        raise InputError(f"config argument ':{arg}' is not known; ':smoke' is")
    return smoke(config)


def validate(config: ConfigDict) -> None:
    """Checks every value.

    Raises:
        InputError: one line that lists all mistakes, each with its key, value and remedy.
    """
    wrong: list[str] = []

    expected, given = base(), flat_keys(config)
    for name in config.teachers if isinstance(config.get("teachers"), ConfigDict) else ():
        add_teacher(expected, name, "")
    known = flat_keys(expected)
    wrong += [f"{key}: no such key{near(expected, key)}" for key in given if key not in known]
    wrong += [f"{key}: missing; start from base()" for key in known if key not in given]
    if wrong:  # the checks below read every key
        raise InputError("config: " + "; ".join(wrong))

    def need(ok: bool, key: str, what: str) -> None:
        if not ok:
            value = config
            for part in key.split("."):
                value = value[part]
            wrong.append(f"{key}={value!r}: {what}")

    def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
        need(value in known, key, f"choose one of {', '.join(known)}")

    stages = tuple(config.stages)
    unknown = [s for s in stages if s not in STAGES]
    need(not unknown, "stages", f"unknown {unknown}; the stages are {', '.join(STAGES)}")
    need(bool(stages), "stages", f"name at least one of {', '.join(STAGES)}")
    need(bool(config.name) and "/" not in config.name, "name", "give a name without '/'")
    need(0 <= config.seed <= MAX_SEED, "seed", f"must lie in 0..{MAX_SEED}")

    training = set(stages) - {"evaluate"}
    if training:
        need(bool(config.data.train), "data.train", "name a data set, such as beir:DIR or pydocs:")
    if "evaluate" in stages:
        need(bool(config.data.test), "data.test", "name a data set, such as beir:DIR or pydocs:")
    need(config.data.min_relevance >= 1, "data.min_relevance", "positives have relevance >= 1")
    for key in ("max_queries", "max_passages"):
        need(config.data[key] >= 0, f"data.{key}", "must be 0 (all) or more")

    sides = ["teacher", "student", *(f"teachers.{name}" for name in config.teachers)]
    for side in sides:
        block = config.teachers[side[9:]] if side.startswith("teachers.") else config[side]
        need(bool(block.model), f"{side}.model", "name a folder, a weights package or a hub id")
        for key in ("query_length", "passage_length"):
            need(block[key] == 0 or block[key] >= 3, f"{side}.{key}", "0 (the model's) or >= 3")
        one_of(f"{side}.dtype", block.dtype, DTYPES)
        if block.prompt_in_pooling is not None:
            one_of(f"{side}.prompt_in_pooling", block.prompt_in_pooling, PROMPT_IN_POOLING)
        _check_lora(side, block, need)
    for key in ("data", "fsdp", "tensor"):
        need(config.mesh[key] == -1 or config.mesh[key] >= 1, f"mesh.{key}", "-1 or positive")
    joins = config.distributed
    one_of("distributed.mode", joins.mode, ("auto", "on", "off"))
    if joins.coordinator:
        need(joins.num_processes >= 1, "distributed.num_processes", "how many join coordinator")
        mine_is = 0 <= joins.process_id < max(1, joins.num_processes)
        need(mine_is, "distributed.process_id", "must lie in 0..num_processes-1")

    need(config.embed.chunk_rows >= 1, "embed.chunk_rows", "must be positive")
    need(config.embed.token_budget >= 0, "embed.token_budget", "must be 0 (automatic) or more")
    one_of("search.backend", config.search.backend, BACKENDS)
    need(config.search.depth >= 1, "search.depth", "must be positive")
    need(config.search.query_block >= 1, "search.query_block", "must be positive")
    need(config.search.memory_gib >= 0, "search.memory_gib", "must be 0 (automatic) or more")

    check_mining(config, need, one_of)

    train = config.train
    need(train.steps >= 0, "train.steps", "must be 0 (by epochs) or more")
    need(train.steps > 0 or train.epochs > 0, "train.epochs", "must be positive")
    need(train.batch_size >= 1, "train.batch_size", "must be positive")
    need(train.num_negatives >= 0, "train.num_negatives", "must be 0 or more")
    if train.num_negatives == 0:
        need(train.in_batch_negatives, "train.in_batch_negatives", "no negatives are left")
    mined = config.mining.num_negatives
    if train.num_negatives > mined and "train" in stages:
        need(False, "train.num_negatives", f"mining.num_negatives={mined} are mined")
    need(train.temperature > 0, "train.temperature", "must be positive")
    need(train.learning_rate > 0, "train.learning_rate", "must be positive")
    need(0 <= train.warmup < 1, "train.warmup", "a share of the steps, in [0, 1)")
    one_of("train.schedule", train.schedule, SCHEDULES)
    for key in ("weight_decay", "clip_norm"):
        need(train[key] >= 0, f"train.{key}", "must be 0 or more")
    for key in ("b1", "b2"):
        need(0 <= train[key] < 1, f"train.{key}", "must lie in [0, 1)")
    need(train.eps > 0, "train.eps", "must be positive")
    need(0 <= train.dropout < 1, "train.dropout", "a share, in [0, 1)")
    need(train.chunk_tokens >= -1, "train.chunk_tokens", "-1 (off), 0 (automatic) or positive")
    for key in ("checkpoint_every", "eval_every", "log_every", "dev_passages", "dev_queries"):
        need(train[key] >= 0, f"train.{key}", "must be 0 or more")
    need(train.keep >= 1, "train.keep", "must be positive")
    need(config.evaluation.depth >= 100, "evaluation.depth", "recall@100 needs at least 100")
    need(config.evaluation.min_relevance >= 1, "evaluation.min_relevance", "must be 1 or more")
    one_of("export.dtype", config.export.dtype, ("float32", "float16"))
    need(config.report.examples >= 0, "report.examples", "must be 0 or more")
    if wrong:
        raise InputError("config: " + "; ".join(wrong))


def _check_lora(side: str, block: ConfigDict, need) -> None:
    """`side`: the block's key, 'student' or a teacher's."""
    key = f"{side}.lora_rank"
    need(block.lora_rank >= 0, key, "must be 0 (all weights are trained) or more")
    if side != "student":
        what = "only the student is trained; 'adapter' puts a trained one on a teacher"
        need(block.lora_rank <= 0, key, what)
    if block.adapter:
        need(block.lora_rank <= 0, key, "new adapters, but 'adapter' names trained ones: give one")
    need(block.lora_alpha > 0, f"{side}.lora_alpha", "must be positive")
    need(0 <= block.lora_dropout < 1, f"{side}.lora_dropout", "a share, in [0, 1)")
    targets = block.lora_targets
    named = bool(targets) and all(isinstance(t, str) and t for t in targets)
    need(named, f"{side}.lora_targets", "names of modules, such as ('q_proj',) or ('all-linear',)")

"""Every knob of a run, its default and one comment.

A config file in `configs/` calls `base()`, changes what its experiment is about, and returns the
result. On the command line any value can be overridden: `--config.mining.percent=0.9`. `smoke()`
shrinks whatever it is given to about a minute. What must hold between values: `checks.py`.
"""

from __future__ import annotations

import copy
import difflib

from ml_collections import ConfigDict, config_dict

from nvret_jax.choices import DEFAULT_STAGES
from nvret_jax.errors import InputError


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
            # Arithmetic of the encoder in training: 'float32', or 'bfloat16' on accelerators. While
            # it embeds: see `embed.dtype`.
            "dtype": "float32",
            # What weights are kept in: 'float32', or 'bfloat16' for a teacher, or a student whose
            # adapters alone are trained.
            "param_dtype": "float32",
            # How attention is computed: 'xla', 'cudnn' (NVIDIA GPUs), 'splash' (TPUs).
            "attention": "xla",
            # Of the student: begin with its weights ('pretrained') or with new ones ('random').
            "init": "pretrained",
            # Of the student: what its layers compute again for the gradient instead of keeping it:
            # 'none', 'full', or another of `choices.REMAT`.
            "remat": "none",
            # LoRA, for the student: train adapters of this rank beside frozen weights; 0: train
            # all weights.
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


def training_set(source: str = "") -> ConfigDict:
    """The knobs of one of several training sets; what is unset is as for `data.train`."""
    return ConfigDict(
        {
            # As `data.train`; also labels:FILE, examples:FILE and sts:FILE (docs/labelled.md).
            "source": source,
            "split": "train",
            # As in `data`, for this set.
            "min_relevance": 1,
            "max_queries": 0,
            "max_passages": 0,
            # Which teachers mine it; (): `mining.teachers`.
            "teachers": (),
            # How it is mined; unset: as `mining` says.
            "rule": config_dict.placeholder(str),
            "percent": config_dict.placeholder(object),
            "margin": config_dict.placeholder(object),
            "anchor": config_dict.placeholder(str),
            "num_negatives": config_dict.placeholder(int),
            # The student's prompts and lengths for it; unset: `student`'s.
            "query_prompt": config_dict.placeholder(str),
            "passage_prompt": config_dict.placeholder(str),
            "query_length": config_dict.placeholder(int),
            "passage_length": config_dict.placeholder(int),
            # The prompts that teachers see; unset: their own.
            "teacher_query_prompt": config_dict.placeholder(str),
            "teacher_passage_prompt": config_dict.placeholder(str),
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
                # Where to read from: 'beir:DIR' or 'pydocs:'. '': what is trained on is in `sets`.
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
                # Judgments of passages or queries that are not there: 'error', or 'drop', which
                # leaves them out and says how many.
                "missing": "error",
                # Use only the first n queries of a split, and n passages (judged ones first);
                # 0: all.
                "max_queries": 0,
                "max_passages": 0,
            },
            # More training sets by name, each made by `add_set(config, name, source)`.
            "sets": {},
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
                # With a coordinator: how long a process waits for the others to start.
                "join_seconds": 50,
            },
            "embed": {
                # Rows a chunk of the stored embeddings holds; it has no influence on their making.
                "chunk_rows": 4096,
                # Tokens a device encodes at a time; 0: chosen for the device.
                "token_budget": 0,
                # Products of all encoders while they embed: 'float32', 'bfloat16', or 'auto':
                # bfloat16 on accelerators and where an encoder's own dtype is that, else float32.
                "dtype": "auto",
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
                # What vectors are multiplied as, for candidates and in evaluation: 'bfloat16'
                # rounds them first, which changes ranks; 'auto': as they are stored, and the
                # vectors of encoders are stored in float32.
                "dtype": "auto",
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
                    # Equal to a positive's normalised text; with it each text is mined once,
                    # whatever its ids, and equal queries share their positives.
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
            # How often all of it is done: each round but the first mines with the student of the
            # round before, and trains that one further.
            "rounds": 1,
            # Training stages by name, each made by `add_stage(config, name)`; `train.stages` says
            # which, in order.
            "train_stages": {},
            "train": {
                # The stages of training, in order; (): one, with the values here.
                "stages": (),
                # Where a stage starts: 'last' (where the one before ended; the first from the
                # student), 'best' (where the one before was best on dev), 'student', or a folder
                # of a model or of another run's checkpoints.
                "start": "last",
                # What is trained on, by name: 'train' is `data.train`, others are in `sets`;
                # (): all of them.
                "sets": (),
                # One number for each set: with unit 'epochs' how often it is gone through in an
                # epoch, with 'weight' its part of all examples (they sum to 1); (): once each.
                "shares": (),
                "share_unit": "epochs",
                # 'homogeneous': all rows of a batch are of one set; 'mixed': of any.
                "batches": "homogeneous",
                # Length of training: epochs over the training queries, unless steps is set.
                "epochs": 1.0,
                "steps": 0,
                # At most this many steps, however many the epochs make; 0: no bound.
                "max_steps": 0,
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
                    # Divides the teacher's scores; unset: 'kl' divides cosines as the student's
                    # own, other scores (logits, BM25) by 1; 'margin_mse' by 1.
                    "teacher_temperature": config_dict.placeholder(float),
                    "student_temperature": 0.0,
                },
                "learning_rate": 2e-5,
                # Share of the steps over which the learning rate rises, or their number (2 or
                # more); then how it falls.
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
                # Chunks are encoded again for their gradient, which bounds memory whatever the
                # batch. False: what student.remat keeps is kept of the whole batch.
                "recompute": True,
                # When weights that are trained and cut along mesh.fsdp are gathered, and their
                # gradients reduced: once per 'step', which moves least over the network, or by the
                # 'layer', in each chunk anew, which takes least memory. 'auto': once per step where
                # the whole weights and gradients take at most a third of a device's memory.
                "gather": "auto",
                # Steps between checkpoints, dev evaluations and logged lines; 0: only at the end.
                "checkpoint_every": 100,
                "eval_every": 50,
                "log_every": 1,
                # Checkpoints kept of a stage: the last so many, and the best one on dev.
                "keep": 2,
                "keep_best": True,
                # Dev evaluation searches at most this many passages: the positives, then what the
                # teacher ranks high, then others; 0: the whole corpus.
                "dev_passages": 2000,
                "dev_queries": 200,
            },
            "result": {
                # Which weights are the trained student: the last or the best on dev, of the last
                # stage.
                "pick": "last",
                # Merged with it: the last so many checkpoints of the stage, and folders of other
                # models or checkpoints; by 'average' or 'slerp', with weights that sum to 1
                # ((): equal ones).
                "merge_last": 1,
                "merge_with": (),
                "merge": "average",
                "merge_weights": (),
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
                # Tokens the exported model keeps of a text, whatever it was trained with, and what
                # it is evaluated with after training; 0: the longer of the student's lengths.
                "max_length": 0,
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
    return _add(config, "teachers", name, encoder(model), changes)


def add_set(config: ConfigDict, name: str, source: str, **changes) -> ConfigDict:
    """Adds a training set under a name; `train.sets`, or a stage's, says which are used.

    Args:
        name: letters, digits, '-' and '_'; also a folder in the workdir.
        source: as `data.train`.
        **changes: other values of the block.

    Returns:
        The block.
    """
    return _add(config, "sets", name, training_set(source), changes)


def add_stage(config: ConfigDict, name: str, **changes) -> ConfigDict:
    """Adds a training stage behind those there are: a copy of `config.train`, with changes.

    Args:
        name: letters, digits, '-' and '_'; also a folder under the checkpoints.
        **changes: values of the block; `loss` takes a dict of its own values that change.

    Returns:
        The block.
    """
    block = copy.deepcopy(config.train)  # which keeps the types of what is unset
    with block.unlocked():
        del block["stages"]
    block.loss.update(changes.pop("loss", {}))
    config.train.stages = (*config.train.stages, name)
    return _add(config, "train_stages", name, block, changes)


def _add(config: ConfigDict, table: str, name: str, block: ConfigDict, changes) -> ConfigDict:
    block.update(changes)
    with config.unlocked():
        config[table][name] = block
    return config[table][name]


def stages_of(config: ConfigDict) -> dict[str, ConfigDict]:
    """Name -> block of each training stage, in order; one, 'train', where none are named."""
    if not config.train.stages:
        return {"train": config.train}
    return {name: config.train_stages[name] for name in config.train.stages}


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
    for block in config.sets.values():
        block.max_queries, block.max_passages = 48, 400
        block.query_length = min(block.query_length or 32, 32)
        block.passage_length = min(block.passage_length or 64, 64)
    config.rounds = min(config.rounds, 2)
    for train in (config.train, *config.train_stages.values()):
        train.batch_size = 8
        train.num_negatives = min(train.num_negatives, 2)
        train.steps = 12
        train.warmup = min(train.warmup, 4)
        train.checkpoint_every = 4
        train.eval_every = 6
        train.log_every = 1
        train.dev_passages = 200
        train.dev_queries = 32
    config.export.max_length = min(config.export.max_length, 64)
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

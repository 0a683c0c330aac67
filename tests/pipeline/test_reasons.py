"""Whatever value changes, the reason names its own key, what it was and what it is."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import tiny_project

from nvret_jax import config as config_lib
from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import flat_keys
from nvret_jax.config.sets import MINING_STAGES
from nvret_jax.errors import InputError
from nvret_jax.pipeline.stages import STAGES
from nvret_jax.pipeline.state import Run

# Values that say where and how a run runs; what comes out is the same.
NO_MATTER = (
    "download",
    "data.allow_empty",
    "data.dev_split",  # names other files
    "distributed.",
    "mesh.",
    "stages",
    "rounds",
    "embed.token_budget",
    "search.backend",
    "search.query_block",
    "search.memory_gib",
    ".attention",
    ".remat",
    ".log_every",
    ".keep",
    ".chunk_tokens",
    ".recompute",
    ".gather",
    ".profile",
    "track",
)
# A value to change to, by the end of the key, where one more or the opposite will not do.
OTHER = {
    "name": "other",
    "data.train": "beir:{}/elsewhere/data",
    "data.test": "beir:{}/elsewhere/data",
    ".source": "beir:{}/elsewhere/data",
    "train_split": "dev",
    "test_split": "dev",
    "dev_split": "test",
    ".split": "test",
    "data.missing": "drop",
    ".teacher_temperature": 0.3,
    ".max_queries": 3,
    ".max_passages": 60,
    ".min_relevance": 2,
    ".model": "{}/other",
    "teachers.words.model": "random:",
    "_length": 11,
    "_prompt": "find: ",
    ".pooling": "cls",
    ".prompt_in_pooling": "none",
    ".bm25": "off",
    ".dtype": "bfloat16",
    ".param_dtype": "bfloat16",
    "export.dtype": "float16",
    ".init": "random",
    ".lora_targets": ("query",),
    "mining.targets": ("teacher",),
    ".teachers": ("teacher",),
    "mining.rule": "shifted+abs+perc_pos",
    ".rule": "margin_pos",
    ".percent": 0.5,
    ".margin": 0.2,
    ".anchor": "max",
    ".ranks": "survivors",
    ".max_rank": 40,
    ".min_score": 0.125,
    ".compat": "sentence_transformers",
    ".num_negatives": 2,
    ".sampling": "top1_softmax",
    ".ensemble": "cross",
    ".short": "drop",
    ".verdicts": "{}/b.jsonl",
    ".given": "ignore",
    ".verdict_mode": "remove",
    ".own_text": "strip",
    ".near_copy": 0.98,
    ".minhash": 0.9,
    ".document_separator": "#",
    ".percents": (0.7,),
    ".margins": (0.7,),
    ".thresholds": (0.7,),
    ".shifts": (7,),
    "train.stages": ("first",),
    ".start": "student",
    ".sets": ("train",),
    ".shares": (2.0, 1.0),
    ".share_unit": "weight",
    ".batches": "mixed",
    ".loss.terms": ("query_to_passage", "passage_to_query"),
    ".partition": "separate",
    ".positives": "pooled",
    ".score_mask": "percent",
    ".mask_by": "guide",
    ".method": "ring",
    ".gather": "layer",
    ".dims": (32, 16),
    ".dim_weights": (0.5,),
    ".distillation": "kl",
    ".vectors": "squared",
    ".schedule": "constant",
    ".warmup": 0.25,
    ".pick": "best",
    ".risk": "labels",
    ".doubtful": "drop",
    ".positives.max_rank": 10,
    ".draw.how": "uniform",
    ".cluster_size": 64,
    ".merge_last": 2,
    ".merge": "slerp",
    ".merge_weights": (0.5, 0.5),
    ".merge_with": ("{}/model",),
}
SKIPPED = {  # files that this project has none of, or which rule out what else is tried
    "teacher.adapter",
    "teachers.words.adapter",
    "student.adapter",
    "teacher.bidirectional",
    "teachers.words.bidirectional",
    "student.bidirectional",
    "rescorer.model",
    "rescorer.depth",
    "rescorer.order",
    "rescorer.length",
    "rescorer.dtype",
    "mining.exclude.document_map",
}


UNSEEN = {  # the same value by another name, or one that another value makes void
    "mining.given",  # counts where the data come with negatives: test_given_negatives.py
    "sets.more.given",
    "data.dev_share",  # counts where the data have no dev split: test_own_data.py
    "data.missing",  # what is read decides, and this data lacks nothing
    "train.sets",
    "train_stages.first.epochs",
    "train_stages.first.min_steps",
    "train_stages.first.max_steps",
    "train_stages.first.checkpoint_every",
    "train_stages.second.checkpoint_every",
}


def plain(project):
    made = config_lib.base()
    made.name = "plain"
    made.data.train = made.data.test = f"beir:{project / 'data'}"
    for side in (made.teacher, made.student):
        side.model = str(project / "model")
    made.stages = ("embed", "search", "audit", "mine", "train", "evaluate", "export", "report")
    return made


def rich(project):
    """As many values at work as can be at a time."""
    made = plain(project)
    made.teacher.query_prompt = "q: "
    made.mining.update(
        {
            "rule": "shifted+abs+margin_pos+perc_pos",
            "max_rank": 50,
            "sampling": "softmax",
            "verdicts": str(project / "a.jsonl"),
            "teachers": ("teacher", "words"),
        }
    )
    config_lib.add_teacher(made, "words", "bm25:")
    config_lib.add_set(made, "more", f"beir:{project / 'data'}", split="dev", percent=0.9)
    made.sets.more.query_prompt = "more: "
    made.student.lora_rank = 2
    made.data.max_passages = 80
    made.train.steps = 7
    made.train.loss.dims = (16,)
    config_lib.add_stage(made, "first")
    config_lib.add_stage(made, "second", start="best", steps=0, epochs=1.5)
    made.result.pick = "best"
    return made


def calibrated(project):
    """Values that count only together: a calibrated rule, a best checkpoint, a bound of epochs."""
    made = plain(project)
    made.mining.percent = "auto"
    made.mining.ensemble = "cross"
    made.train.loss.distillation = "kl"
    made.mining.num_distilled, made.train.num_distilled = 5, 3
    made.train.loss.dims = (16,)
    made.result.pick = "best"
    made.result.merge_last = 2
    made.train.epochs, made.train.max_steps = 2.0, 30
    return made


def drawn(project):
    """Negatives drawn by the teacher's scores, with their risks; doubtful positives weigh less."""
    made = plain(project)
    made.mining.update({"risk": "ranks", "risk_budget": 0.3, "num_negatives": 6})
    made.mining.positives.update({"max_rank": 20, "doubtful": "weigh"})
    made.train.draw.update({"how": "softmax", "pool": 5})
    made.train.loss.update({"weights": True, "vectors": "cosine"})
    made.student.projection, made.evaluation.teacher_passages = 32, True
    return made


def simans(project):
    """Drawn by the distance from the positive's score."""
    made = drawn(project)
    made.train.draw.how = "simans"
    return made


def staged(project, first="softmax", second="simans"):
    """Each stage draws in another way."""
    made = drawn(project)
    for name, how in {"first": first, "second": second}.items():
        config_lib.add_stage(made, name)
        made.train_stages[name].draw.how = how
    return made


BASES = (
    plain,
    rich,
    calibrated,
    drawn,
    simans,
    staged,
    functools.partial(staged, first="simans", second="softmax"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasons")
    tiny_project.make(folder)
    tiny_project.make_model(folder / "other", seed=3)
    for path in (folder / "data" / "qrels").iterdir():  # half of the judgments are of grade 2
        lines = path.read_text().splitlines()
        lines[1::2] = [f"{line[:-1]}2" for line in lines[1::2]]
        path.write_text("\n".join(lines) + "\n")
    other = shutil.copytree(folder / "data", folder / "elsewhere" / "data")
    for name in ("corpus.jsonl", "queries.jsonl"):
        text = (other / name).read_text()
        (other / name).write_text(text.replace('"text": "', '"text": "wing '))
    for name, verdict in ("a", "negative"), ("b", "positive"):
        line = {"query_id": "q0", "passage_id": "p5", "verdict": verdict}
        (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def artifacts(config, folder):
    """All artefacts of a config, by name; nothing is computed."""
    run = Run(config, Workdir.open(folder, config.to_dict(), write=False))
    out = {}
    for name, stage in STAGES.items():
        for part in run.sets.values() if name in MINING_STAGES else [run]:
            for item in stage.artifacts(part):
                out[part.label + item.name] = item
    return out


def described(item):
    return {**item.described(), "fingerprint": item.fingerprint, "inputs": item.inputs}


def matters_not(key):
    return any(key.startswith(x) or f".{key}".endswith(x) for x in NO_MATTER)


def other_value(key, value, project):
    ends = sorted((end for end in OTHER if f".{key}".endswith(end)), key=len)
    if ends:
        new = OTHER[ends[-1]]
        if isinstance(new, str):
            return new.replace("{}", str(project))
        return (
            tuple(x.replace("{}", str(project)) if isinstance(x, str) else x for x in new)
            if (isinstance(new, tuple))
            else new
        )
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"no other value for {key}"
    return value + 1 if isinstance(value, int) else value / 2 + 0.125


def get(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def put(config, key, value):
    *at, last = key.split(".")
    with config.unlocked():
        (get(config, ".".join(at)) if at else config)[last] = value
    return config


def shown(*values):
    """'old → new' as a reason shows it, or 'new' alone."""
    values = json.loads(json.dumps(values))
    text = fingerprints.shown_change(None if len(values) == 1 else values[0], values[-1])
    return text.removeprefix("unset → ") if len(values) == 1 else text


def tried(base, project, folder):
    """(keys that changed an artefact, reasons that do not say so) of a config."""
    before = {name: described(item) for name, item in artifacts(base(project), folder).items()}
    named, wrong = set(), []
    for key in flat_keys(base(project)):
        if key in SKIPPED or matters_not(key):
            continue
        config = base(project)
        old = get(config, key)
        new = other_value(key, old, project)
        put(config, key, new)
        try:
            after = artifacts(config, folder)
        except (InputError, ValueError):  # cannot be in this config
            continue
        for name, item in after.items():
            if name not in before or before[name]["fingerprint"] == item.fingerprint:
                continue
            text = fingerprints.changes(before[name], described(item))
            named.add(key)
            values = (f"{key} {shown(old, new)}", f"→ {shown(new)}")
            if key not in text or not any(value in text for value in values):
                wrong.append(f"{key} {old!r} → {new!r}, {name}: {text}")
    return named, wrong


def test_a_change_comes_before_the_values_that_it_brings_into_use():
    config = {"student.lora_alpha": 32.0, "student.lora_rank": 0}
    whole = {"format": 1, "names": {}, "inputs": {}, "config": config}
    whole["parts"] = {"student.lora_rank": 0}
    adapted = whole | {"parts": config | {"student.lora_rank": 4}}
    adapted["config"] = adapted["parts"]
    found = fingerprints.changes(whole, adapted)
    assert found == "student.lora_rank 0 → 4; student.lora_alpha is now used"
    found = fingerprints.changes(adapted, whole)
    assert found == "student.lora_rank 4 → 0; student.lora_alpha is no longer used"


@pytest.mark.slow
def test_every_value_that_matters_is_named(project, tmp_path):
    named, wrong = set(), []
    for base in BASES:
        found = tried(base, project, tmp_path)
        named |= found[0]
        wrong += found[1]
    assert not wrong, "\n".join(wrong)
    keys = {key for base in BASES for key in flat_keys(base(project))}
    unseen = keys - named - SKIPPED - {k for k in keys if matters_not(k)} - UNSEEN
    # BM25 reads nothing of its block but the model.
    unseen -= {k for k in unseen if k.startswith("teachers.words.")}
    if unseen:
        pytest.fail(f"not tried: {sorted(unseen)}")

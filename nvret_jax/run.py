"""One run: its config, workdir, data, encoders and mesh, and the inputs of every artefact.

What an artefact is a function of is said here and nowhere else. Parts are the few values that
decide the content: an embedding knows the prompt of its own side, not of the other; mining knows
the value of the rule in use, not of the others. So a change makes again what it must, and no more.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvret_jax import mesh as mesh_lib
from nvret_jax import parts as parts_lib
from nvret_jax import sets, teachers
from nvret_jax.artifacts import Artifact, Workdir, digest
from nvret_jax.choices import STARTS
from nvret_jax.config import stages_of
from nvret_jax.data.dataset import Dataset, TextTable, content_hash, load_dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.subset import subset
from nvret_jax.errors import InputError
from nvret_jax.mining.exclusion import Settings
from nvret_jax.mining.options import Options, compatible
from nvret_jax.mining.rules import VALUES, Rule
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.model_tokenizer import ModelTokenizer
from nvret_jax.search.backend import make_index
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.store import EmbeddingStore
from nvret_jax.sides import OwnSide, Rescorer, ServedSide, Side
from nvret_jax.training.loop import load_trained

# Knobs of `train` that change how a run is done or told, not what comes out of it.
_TRAIN_CONDUCT = (
    "stages",
    "checkpoint_every",
    "eval_every",
    "log_every",
    "keep",
    "keep_best",
    "chunk_tokens",
    "recompute",
    "dev_passages",
    "dev_queries",
)
# Where a folder of the workdir comes from.
_MADE_BY = {
    "embeddings": "embed",
    "candidates": "search",
    "audit.csv": "audit",
    "negatives": "mine",
    "checkpoints": "train",
    "evaluation": "evaluate",
}


class Run:
    """A config at work in a workdir.

    Attributes:
        config, workdir: what was given.
        label: '' or, for one of several training sets, its folder below the whole run's workdir.
        models: the encoders that are loaded, by what they were read with.
        tokenizers: those that are, by folder.
        cut_counts: how many texts of a table a tokenizer cuts; see `truncation`.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        *,
        whole: Run | None = None,
        started: ConfigDict | None = None,
    ):
        """A run.

        Args:
            whole: the run of which this is the part that is about one set.
            started: block of the student before the first of several rounds.
        """
        started = config.student if started is None else started
        self.config, self.workdir = config, workdir
        self._whole = whole
        self.label = "" if whole is None else f"sets/{workdir.path.name}/"
        self.models: dict[str, Encoder] = {} if whole is None else whole.models
        self.tokenizers: dict[str, ModelTokenizer] = {} if whole is None else whole.tokenizers
        self._read: dict[str, Dataset] = {} if whole is None else whole._read
        self.cut_counts: dict[tuple, int] = {} if whole is None else whole.cut_counts
        self.student = Side("student", config.student, self)
        # What "before" means. Where nothing is trained, the student is evaluated as configured.
        self.untrained = OwnSide(started, self) if self.trains else self.student
        self.served = ServedSide(self.student)

    @functools.cached_property
    def mesh(self) -> Mesh:
        if self._whole is not None:
            return self._whole.mesh
        return mesh_lib.make_mesh(**self.config.mesh.to_dict())

    @functools.cached_property
    def sets(self) -> dict[str, Run]:
        """For each training set that is used the run that mines it; 'train' is this one."""
        made = {}
        for name in sets.used_sets(self.config):
            if name == sets.MAIN_SET:
                made[name] = self
                continue
            config = sets.set_config(self.config, name)
            made[name] = Run(config, self.workdir.below(f"sets/{name}", config), whole=self)
        return made

    @property
    def stages(self) -> dict[str, ConfigDict]:
        """Name -> block of each stage of training."""
        return stages_of(self.config)

    def release_teachers(self) -> None:
        """Lets go of all encoders but the student: nothing after mining needs their weights."""
        for part in self.sets.values():
            for side in part.encoders.values():
                side.release()
        kept = self.student.key
        for key in [key for key in self.models if key != kept]:
            del self.models[key]

    @property
    def trains(self) -> bool:
        return "train" in self.config.stages

    @property
    def evaluates(self) -> bool:
        return "evaluate" in self.config.stages

    # --- teachers ---

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers mined with, the most accurate first."""
        return tuple(self.config.mining.teachers)

    def block(self, name: str) -> ConfigDict:
        """The config of one teacher."""
        return self.config.teacher if name == "teacher" else self.config.teachers[name]

    @functools.cached_property
    def encoders(self) -> dict[str, Side]:
        """The teachers that are encoders."""
        return {
            name: Side(name, self.block(name), self)
            for name in self.teacher_names
            if teachers.kind(self.block(name).model) == "encoder"
        }

    @property
    def guide(self) -> str:
        """The teacher whose vectors choose the dev corpus, or '' where none is an encoder."""
        return next(iter(self.encoders), "") if sets.MAIN_SET in self.sets else ""

    def side(self, role: str) -> Side:
        """Whose embeddings a role's are: a teacher's name, 'student' or 'student-start'.

        The roles of the student are about evaluation: it is 'student-start' as its user had it,
        and 'student' as its export serves it.
        """
        if role == "student-start":
            return self.untrained
        return self.served if role == "student" else self.encoders[role]

    # --- data ---

    @functools.cached_property
    def _datasets(self) -> dict[str, Dataset]:
        """By spec, so that training and test data that are the same are read once."""
        config, stages = self.config.data, set(self.config.stages)
        wanted: dict[str, list[str]] = {}
        if config.train and stages - {"evaluate"}:
            wanted.setdefault(config.train, []).append(config.train_split)
        if "evaluate" in stages:
            wanted.setdefault(config.test, []).append(config.test_split)
        loaded = {}
        for spec, splits in wanted.items():
            if spec not in self._read:
                self._read[spec] = load_dataset(spec, allow_empty=config.allow_empty)
            data = self._read[spec]
            if spec == config.train and config.dev_split in data.qrels:
                splits = [*splits, config.dev_split]
            for split in splits:
                data.split_qrels(split)  # names the splits there are when one is missing
            loaded[spec] = subset(
                data,
                list(dict.fromkeys(splits)),
                max_queries=config.max_queries,
                max_passages=config.max_passages,
            )
        return loaded

    @property
    def train_data(self) -> Dataset:
        return self._datasets[self.config.data.train]

    @property
    def test_data(self) -> Dataset:
        return self._datasets[self.config.data.test]

    @functools.cached_property
    def dev_split(self) -> str:
        """The split that guides training, or '' where there is none."""
        split = self.config.data.dev_split
        if not (self.trains and split and self.config.data.train):
            return ""
        if split not in self.train_data.qrels:
            logging.warning(
                "data set %s has no split %r: training goes on without dev scores",
                self.train_data.name,
                split,
            )
            return ""
        return split

    def table(self, data: Dataset, name: str) -> tuple[str, TextTable]:
        """('passage', corpus) for 'passages', ('query', queries of s) for 'queries-s'."""
        if name == "passages":
            return "passage", data.corpus
        return "query", data.split_queries(name.removeprefix("queries-"))

    def positives(self) -> dict[str, list[str]]:
        """Judged positives of the training queries, by query id."""
        return self.train_data.positives(
            self.config.data.train_split, self.config.data.min_relevance
        )

    def positive_rows(self) -> Ragged:
        """The same as passage rows, a row per query."""
        row = self.train_data.corpus.row
        return Ragged.from_rows(
            [[row[p] for p in ids] for ids in self.positives().values()], np.int32
        )

    def make_index(self, passages_nd):
        """A search index over passages, as configured."""
        config = self.config.search
        return make_index(
            passages_nd,
            mesh=self.mesh,
            backend=config.backend,
            memory_bytes=int(config.memory_gib * 2**30) or None,
        )

    @functools.cached_property
    def _table_digests(self) -> dict[tuple[int, str], str]:
        return {}

    def text_digest(self, data: Dataset, name: str) -> str:
        """A hash of the ids and texts of one table."""
        key = (id(data), name)
        if key not in self._table_digests:
            empty = TextTable((), [])
            self._table_digests[key] = content_hash(self.table(data, name)[1], empty, {})
        return self._table_digests[key]

    # --- artefacts ---

    def embeddings(self, role: str, data: Dataset, table: str) -> Artifact:
        """Vectors of one table by the teacher, the student as it starts, or the trained one."""
        kind, _ = self.table(data, table)
        side = self.side(role)
        parts = {
            **side.parts(kind),
            "texts": self.text_digest(data, table),
            "chunk_rows": self.config.embed.chunk_rows,
        }
        if role == "student":
            parts |= self.result_parts()
        return self.workdir.embeddings(role, data.name, table, parts)

    @functools.cached_property
    def start_role(self) -> str:
        """Whose vectors the untrained student's are: a teacher's, where they are the same."""
        for name, side in self.encoders.items() if "embed" in self.config.stages else ():
            if all(side.parts(kind) == self.untrained.parts(kind) for kind in ("query", "passage")):
                return name
        return "student-start"

    def length(self, role: str, kind: str) -> int:
        return self.side(role).length(kind)

    @functools.cached_property
    def depth(self) -> int:
        """Candidates stored per query: as configured, or as many as mining cannot do without."""
        return max(self.config.search.depth, self.options.window)

    def candidates(self, name: str) -> Artifact:
        """One teacher's best passages for every training query."""
        return self.workdir.candidates(
            name,
            {
                **teachers.parts(self, name),
                "positives": digest(self.positives()),
                "depth": self.depth,
            },
        )

    @functools.cached_property
    def rescorer(self) -> Rescorer | None:
        """What scores candidates anew; None where there is none, or no rule asks for its scores."""
        return Rescorer(self) if self.config.rescorer.model else None

    def rescored(self, name: str) -> Artifact | None:
        """One teacher's candidates with the rescorer's scores; None without one."""
        if self.rescorer is None or not self.rescorer.is_needed:
            return None
        parts = {"candidates": self.candidates(name).fingerprint, **self.rescorer.parts()}
        if self.config.rescorer.order == "teacher":
            parts |= parts_lib.mining_parts(self.options) | self.exclusion_parts()
        return self.workdir.candidates(f"{name}.rescored", parts)

    @functools.cached_property
    def calibrated(self) -> tuple[str, ...]:
        """The rules whose value is 'auto'."""
        mining = self.config.mining
        return tuple(
            name
            for name in mining.rule.split("+")
            if VALUES[name] and mining[VALUES[name]] == "auto"
        )

    @functools.cached_property
    def options(self) -> Options:
        """How to mine; where a value is 'auto', the paper's stands in its place."""
        mining = self.config.mining
        names = {field.name for field in dataclasses.fields(Rule)} - {"name", "min_score"}
        values = {name: mining[name] for name in names if mining[name] != "auto"}
        if mining.min_score is not None:
            values["min_score"] = mining.min_score
        options = Options(
            rule=Rule(name=mining.rule, **values),
            num_negatives=mining.num_negatives,
            sampling=mining.sampling,
            sample_from=mining.sample_from,
            sample_temperature=mining.sample_temperature,
            ensemble=mining.ensemble,
            short=mining.short,
            second_search=mining.second_search,
            seed=self.config.seed,
        )
        most = max(map(len, self.positives().values())) if mining.compat else 0
        rescored = bool(self.config.rescorer.model)
        return compatible(options, mining.compat, most, rescored=rescored)

    @functools.cached_property
    def exclusions(self) -> Settings:
        """Which passages are never negatives."""
        config = self.config.mining.exclude
        if self.config.mining.compat == "sentence_transformers":
            return Settings(own_text="off", same_text=False)
        return Settings(
            own_text=config.own_text,
            same_text=config.same_text,
            cosine=config.near_copy,
            jaccard=config.minhash,
            document_separator=config.document_separator,
            document_map=config.document_map or None,
        )

    def audit(self) -> Artifact:
        """How many false negatives each rule lets in."""
        parts = {
            "candidates": [
                (self.rescored(name) or self.candidates(name)).fingerprint
                for name in self.teacher_names
            ],
            "teachers": list(self.teacher_names),
            **parts_lib.mining_parts(self.options),
            **self.exclusion_parts(),
            **{f"audit.{key}": value for key, value in self.config.audit.to_dict().items()},
            "seed": self.config.seed,
        }
        return self.workdir.audit(parts)

    def exclusion_parts(self) -> dict[str, Any]:
        """What decides which passages are never negatives."""
        parts: dict[str, Any] = {"exclude": parts_lib.exclusion_parts(self.exclusions)}
        if self.exclusions.own_text != "off" or self.exclusions.same_text:
            data, split = self.train_data, self.config.data.train_split
            tables = ("passages", f"queries-{split}")
            parts["texts"] = [self.text_digest(data, table) for table in tables]
        mining = self.config.mining
        if mining.verdicts:
            judged = parts_lib.file_digest(mining.verdicts)
            parts["verdicts"] = [judged, mining.verdict_mode, mining.max_promoted]
        return parts

    def negatives(self) -> Artifact:
        """What the rule kept."""
        parts = {
            "candidates": [
                (self.rescored(name) or self.candidates(name)).fingerprint
                for name in self.teacher_names
            ],
            **parts_lib.mining_parts(self.options),
            **self.exclusion_parts(),
        }
        for name in self.calibrated:
            parts[VALUES[name]] = ["auto", self.config.mining.calibration.to_dict()]
        return self.workdir.negatives(self.config.data.train_split, parts)

    def checkpoints(self) -> Artifact:
        """The student while and after it trains."""
        parts: dict[str, Any] = {"seed": self.config.seed}
        for name, block in self.stages.items():
            values = {k: v for k, v in block.to_dict().items() if k not in _TRAIN_CONDUCT}
            if values["steps"]:
                del values["epochs"]  # steps decide
            if values["steps"] or not values["max_steps"]:
                del values["max_steps"]  # no bound
            if values["start"] not in STARTS:
                values["start"] = parts_lib.folder_digest(values["start"])
            parts["train" if name == "train" else f"stage {name}"] = values
        if self.config.train.stages:
            parts["order"] = list(self.stages)
        for name, part in self.sets.items():
            of = "" if name == sets.MAIN_SET else f" {name}"
            parts[f"negatives{of}"] = part.negatives().fingerprint
            parts[f"query_encoder{of}"] = part.student.parts("query")
            parts[f"passage_encoder{of}"] = part.student.parts("passage")
        return self.workdir.checkpoints(parts)

    def result_parts(self) -> dict[str, Any]:
        """What the trained student is a function of."""
        result = self.config.result
        parts: dict[str, Any] = {"checkpoints": self.checkpoints().fingerprint}
        if result.pick != "last":
            parts["pick"] = result.pick
        if result.merge_last > 1 or result.merge_with:
            folders = [parts_lib.folder_digest(folder) for folder in result.merge_with]
            parts["merged"] = [result.merge, result.merge_last, folders, result.merge_weights]
        return parts

    def evaluation(self) -> Artifact:
        """Scores on the test split."""
        data, split = self.test_data, self.config.data.test_split
        roles = [self.start_role, *(["student"] if self.trains else [])]
        parts = {
            f"{role} {table}": self.embeddings(role, data, table).fingerprint
            for role in roles
            for table in ("passages", f"queries-{split}")
        }
        parts |= self.config.evaluation.to_dict()
        parts["judgments"] = digest(data.qrels[split])
        parts["split"] = split
        return self.workdir.evaluation(data.name, parts)

    def _student_parts(self) -> dict[str, Any]:
        if self.trains:
            return self.result_parts()
        return {kind: self.student.parts(kind) for kind in ("query", "passage")}

    def export(self) -> Artifact:
        """The folder other tools load."""
        parts = {**self._student_parts(), "dtype": self.config.export.dtype}
        if self.config.export.max_length:
            parts["length"] = self.config.export.max_length
        parts["told"] = [self.config.name, self.recipe()]
        if self.evaluates:
            parts["evaluation"] = self.evaluation().fingerprint
        return self.workdir.export(parts)

    def report(self) -> Artifact:
        """report.html."""
        parts = {**self._student_parts(), "examples": self.config.report.examples}
        parts["told"] = [self.config.name, self.recipe()]
        for name, part in self.sets.items() if "audit" in self.config.stages else ():
            of = "" if name == sets.MAIN_SET else f" {name}"
            parts[f"audit{of}"] = part.audit().fingerprint
        for name, part in self.sets.items() if "mine" in self.config.stages else ():
            of = "" if name == sets.MAIN_SET else f" {name}"
            parts[f"negatives{of}"] = part.negatives().fingerprint
        if self.evaluates:
            parts["evaluation"] = self.evaluation().fingerprint
        return self.workdir.report(parts)

    # --- what earlier stages made ---

    def need(self, artifact: Artifact) -> Artifact:
        """`artifact`, if it stands and holds.

        Raises:
            InputError: it does not; says why.
        """
        reason = artifact.stale()
        if reason:
            stage = _MADE_BY.get(artifact.name.split("/")[0])
            first = f"run --stages={stage} first" if stage else "run the stage that makes it"
            how = reason if reason == "not there yet" else f"out of date ({reason})"
            raise InputError(f"{artifact.path} is needed but {how}; {first}, or leave --stages out")
        return artifact

    def open(self, role: str, data: Dataset, table: str) -> EmbeddingStore:
        """Finished vectors."""
        return EmbeddingStore.open(self.need(self.embeddings(role, data, table)).path)

    def read_candidates(self, name: str) -> Candidates:
        """Finished candidates."""
        data = self.train_data
        return Candidates.read(self.need(self.candidates(name)).path, data.queries, data.corpus)

    @functools.cached_property
    def trained_student(self) -> Encoder:
        folder = self.need(self.checkpoints()).path
        return load_trained(self.student.encoder, folder, **self.config.result.to_dict())

    @property
    def trained_on(self) -> dict[str, str]:
        """Source -> name, of each data set that is trained on."""
        return {part.config.data.train: part.train_data.name for part in self.sets.values()}

    @property
    def mining_rule(self) -> str:
        """The rule and its values, for people."""
        rule = self.options.rule.describe()
        if self.calibrated:
            rule = f"{self.config.mining.rule}, {' and '.join(self.calibrated)} calibrated"
        return rule

    def recipe(self) -> dict[str, Any]:
        """The choices a model card and a report tell, by name."""
        told: dict[str, Any] = {}
        if self.config.rounds > 1:
            told["Rounds of mining and training"] = self.config.rounds
        for name, part in self.sets.items():
            of = f" for {name}" if len(self.sets) > 1 else ""
            told[f"Teacher{of}"] = teachers.describe(part)
            told[f"Mining rule{of}"] = part.mining_rule
        told["Student started from"] = self.untrained.config.model
        if self.student.lora is not None:
            lora = self.student.lora
            told["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}"
        for name, block in self.stages.items():
            of = f" ({name})" if len(self.stages) > 1 else ""
            told |= {f"{key}{of}": value for key, value in self._told_of(block).items()}
        told["Query / passage length"] = (
            f"{self.student.length('query')} / {self.student.length('passage')} tokens"
        )
        if self.trains:
            told["Longest text as exported"] = f"{self.served.length('passage')} tokens"
        told["Seed"] = self.config.seed
        return told

    def _told_of(self, block: ConfigDict) -> dict[str, Any]:
        """What is told of one stage of training."""
        told: dict[str, Any] = {}
        names = sets.sets_of(self.config, block)
        if len(self.sets) > 1:
            shares = sets.shares_of(block, names)
            parts = [f"{name} {share:g}" for name, share in zip(names, shares, strict=True)]
            told[f"Training sets and their {block.share_unit}"] = ", ".join(parts)
            told["Batches"] = block.batches
        told |= {
            "Hard negatives per query": block.num_negatives,
            "In-batch negatives": "yes" if block.in_batch_negatives else "no",
            "Queries per batch": block.batch_size,
            "Training length": _duration(block),
            "Temperature": block.temperature,
            "Learning rate": f"{block.learning_rate} ({block.schedule}, warm-up {block.warmup})",
        }
        if block.loss.distillation:
            told["Distillation"] = block.loss.distillation
        if block.loss.dims:
            told["Matryoshka dimensions"] = ", ".join(map(str, block.loss.dims))
        return told


def _duration(block: ConfigDict) -> str:
    """How long a stage of training is, for people."""
    if block.steps:
        return f"{block.steps} steps"
    most = f", at most {block.max_steps} steps" if block.max_steps else ""
    return f"{block.epochs} epochs{most}"

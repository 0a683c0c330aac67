"""One run: its config, workdir, data, encoders and mesh, and the inputs of every artefact.

What an artefact is a function of is said here and nowhere else. Parts are the few values that
decide the content: an embedding knows the prompt of its own side, not of the other; mining knows
the value of the rule in use, not of the others. So a change makes again what it must, and no more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvret_jax import mesh as mesh_lib
from nvret_jax import options, platforms
from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.artifacts.fingerprints import About, Digest, digest
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import sets, stages_of
from nvret_jax.data.dataset import Dataset, TextTable, content_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.reading import read_wanted
from nvret_jax.data.same_text import SameText, share_positives
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.export.options import Export
from nvret_jax.mining import given
from nvret_jax.mining.options import Audit, Exclude, Mining, Options, calibrated, compatible
from nvret_jax.mining.options import Rescorer as RescorerOptions
from nvret_jax.mining.rules import VALUES
from nvret_jax.models import precision
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.options import DTYPES, EncoderOptions
from nvret_jax.options import blocks
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline import said
from nvret_jax.pipeline.encoders import Loading, OwnSide, Rescorer, ServedSide, Side
from nvret_jax.pipeline.made import Stores, need
from nvret_jax.pipeline.searching import Searching
from nvret_jax.report.options import Report
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.options import Embed, Search
from nvret_jax.search.rankers import teachers
from nvret_jax.search.store import EmbeddingStore
from nvret_jax.training.loop import load_trained
from nvret_jax.training.options import Training
from nvret_jax.training.sums import DamagedCheckpoint


def _once(describe: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps what a method of a run returns: an artefact's parts do not change while it works."""

    @functools.wraps(describe)
    def kept(self: Run, *args: Any) -> Any:
        key = (describe.__name__, *(arg if isinstance(arg, str) else id(arg) for arg in args))
        if key not in self._described:
            self._described[key] = describe(self, *args)
        return self._described[key]

    return kept


class Run:
    """A config at work in a workdir.

    Attributes:
        config, workdir: what was given.
        stores: finished embeddings.
        label: '' or, for one of several training sets, its folder below the whole run's workdir.
        loading: what models are read with, and those that are in memory.
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
        self._described: dict[tuple, Any] = {}
        self.stores = Stores()
        self.label = "" if whole is None else f"sets/{workdir.path.name}/"
        self.loading = self._loading() if whole is None else whole.loading
        self._read: dict[str, Dataset] = {} if whole is None else whole._read
        self.cut_counts: dict[tuple, int] = {} if whole is None else whole.cut_counts
        self.student = self._side("student", config.student)
        # What "before" means. Where nothing is trained, the student is evaluated as configured.
        self.untrained = self.student
        if self.trains:
            self.untrained = self._side("student", started, OwnSide)
        self.served = ServedSide(self.student, config.export.max_length)

    def _loading(self) -> Loading:
        return Loading(
            mesh=lambda: self.mesh,
            download=self.config.download,
            seed=self.config.seed,
            dropout=lambda: max(stage.dropout for stage in self.stages.values()),
        )

    def _side(self, name: str, block: ConfigDict, cls: type[Side] = Side) -> Side:
        return cls(name, blocks.read(EncoderOptions, block), self.loading, self.label)

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

    @functools.cached_property
    def stages(self) -> dict[str, Training]:
        """Name -> options of each stage of training."""
        blocks_of = stages_of(self.config).items()
        return {name: blocks.read(Training, block) for name, block in blocks_of}

    def release_teachers(self) -> None:
        """Lets go of all encoders but the student: nothing after mining needs their weights."""
        for part in self.sets.values():
            for side in part.encoders.values():
                side.release()
        kept = self.student.key
        for key in [key for key in self.loading.models if key != kept]:
            del self.loading.models[key]

    def release_untrained(self) -> None:
        """Lets go of the student before training, unless the trained one has its weights."""
        if self.untrained.key != self.student.key:
            self.untrained.release()
            self.loading.models.pop(self.untrained.key, None)

    @property
    def trains(self) -> bool:
        return "train" in self.config.stages

    @property
    def evaluates(self) -> bool:
        return "evaluate" in self.config.stages and bool(self.config.data.test)

    # --- teachers ---

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers mined with, the most accurate first."""
        return tuple(self.config.mining.teachers)

    @property
    def teacher_models(self) -> str:
        """The teachers' models, for people."""
        return ", ".join(self.block(name).model for name in self.teacher_names)

    def block(self, name: str) -> ConfigDict:
        """The config of one teacher."""
        return self.config.teacher if name == "teacher" else self.config.teachers[name]

    @functools.cached_property
    def encoders(self) -> dict[str, Side]:
        """The teachers that are encoders."""
        return {
            name: self._side(name, self.block(name))
            for name in self.teacher_names
            if teachers.is_encoder(self.block(name).model)
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
        stages = set(self.config.stages)
        return read_wanted(
            self.config.data,
            self._read,
            trains=bool(stages - {"evaluate"}),
            evaluates="evaluate" in stages,
            download=self.config.download,
        )

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

    @_once
    def positives(self) -> dict[str, list[str]]:
        """Judged positives of the training queries, by query id; equal queries share theirs."""
        data = self.config.data
        judged = self.train_data.positives(data.train_split, data.min_relevance)
        if not self.exclusions.same_text:
            return judged
        return share_positives(judged, self.train_data.queries)

    @functools.cached_property
    def passage_texts(self) -> SameText | None:
        """Which training passages have equal texts; None where each id is one of its own."""
        return SameText.of(self.train_data.corpus.texts) if self.exclusions.same_text else None

    @_once
    def given_rows(self) -> Ragged:
        """Negatives that come with the data, as passage rows, a row per training query."""
        data, split = self.train_data, self.config.data.train_split
        return given.rows_of(data.given.get(split, {}), list(self.positives()), data.corpus.row)

    def positive_rows(self) -> Ragged:
        """The same as passage rows, a row per query."""
        row = self.train_data.corpus.row
        return Ragged.from_rows(
            [[row[p] for p in ids] for ids in self.positives().values()], np.int32
        )

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu': known before the mesh is, which may be one that cannot be."""
        return platforms.here()

    @functools.cached_property
    def searching(self) -> Searching:
        """How vectors are searched."""
        read = blocks.read(Search, self.config.search)
        return Searching(read, lambda: self.mesh, self.platform)

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

    @_once
    def embeddings(self, role: str, data: Dataset, table: str) -> Artifact:
        """Vectors of one table by the teacher, the student as it starts, or the trained one."""
        kind, _ = self.table(data, table)
        side = self.side(role)
        parts = {
            **side.parts(kind),
            "texts": self.texts(data, table),
            **self._values_of(Embed, "embed"),
        }
        if role == "student":
            parts |= self.result_parts()
        own = side.config.dtype
        dtype = precision.embedding_dtype(self.config.embed.dtype, own, self.platform)
        # Training and test data of one name keep their vectors apart.
        train = self.train_data if self.config.data.train and self._is_test(data) else None
        folder = parts_lib.folder_name(data, train, test=self._is_test(data))

        def made_in(dtype: str) -> Artifact:
            by = {} if dtype == own else {"embed.dtype": dtype}
            return self.workdir.embeddings(role, folder, table, parts | by, self.about)

        if self.config.embed.dtype == "auto":
            # What another machine of the same workdir made stays.
            for other in DTYPES:
                if other != dtype and made_in(other).is_recorded():
                    return made_in(other)
        return made_in(dtype)

    def embedding_dtype(self, artifact: Artifact, role: str) -> str:
        """The dtype in which an artefact of embeddings is made."""
        return artifact.parts.get("embed.dtype", self.side(role).config.dtype)

    def _is_test(self, data: Dataset) -> bool:
        """Whether this is test data, and no training data."""
        found = self._datasets
        config = self.config.data
        return data is found.get(config.test) and data is not found.get(config.train)

    def texts(self, data: Dataset, table: str) -> Digest:
        """The texts of a table, as a part."""
        return parts_lib.texts_part(
            self.text_digest(data, table), test=self._is_test(data), table=table
        )

    @functools.cached_property
    def about(self) -> About:
        """What reasons need to name what changed."""
        names: dict[str, str] = {}
        if self._whole is not None:
            names = sets.key_names(self._whole.config, self.workdir.path.name)
        return About(names, parts_lib.values_of(self.config))

    @functools.cached_property
    def start_role(self) -> str:
        """Whose vectors the untrained student's are: a teacher's, where they are the same."""
        for name, side in self.encoders.items() if "embed" in self.config.stages else ():
            if side.same_as(self.untrained):
                return name
        return "student-start"

    @functools.cached_property
    def depth(self) -> int:
        """Candidates stored per query: as configured, or as many as mining cannot do without."""
        return max(self.config.search.depth, self.options.window)

    @_once
    def candidates(self, name: str) -> Artifact:
        """One teacher's best passages for every training query."""
        return self.workdir.candidates(
            name,
            {
                **self._ranking_parts(name),
                "positives": parts_lib.judgments_part(self.positives(), test=False),
                "search.depth": self.depth,
            },
            self.about,
        )

    def _ranking_parts(self, name: str) -> dict[str, Any]:
        """What a teacher's ranking of the training queries is a function of, positives aside."""
        data, tables = self.train_data, {"passages": "passages"}
        tables["queries"] = f"queries-{self.config.data.train_split}"
        if name in self.encoders:
            made = {what: self.embeddings(name, data, table) for what, table in tables.items()}
            return made | self.searching.parts()
        found = teachers.parts(
            "teacher" if name == "teacher" else f"teachers.{name}",
            self.block(name),
            {what: self.texts(data, table) for what, table in tables.items()},
            seed=self.config.seed,
            same_text=self.exclusions.same_text,
        )
        by_vectors = teachers.has_vectors(self.block(name).model)
        return found | (self.searching.parts(stored="") if by_vectors else {})

    @functools.cached_property
    def rescorer(self) -> Rescorer | None:
        """What scores candidates anew; None where there is none, or no rule asks for its scores."""
        read = blocks.read(RescorerOptions, self.config.rescorer)
        return Rescorer(read, self.loading, lambda: self.train_data) if read.model else None

    @_once
    def rescored(self, name: str) -> Artifact | None:
        """One teacher's candidates with the rescorer's scores; None without one."""
        if self.rescorer is None or not self.rescorer.is_needed(self.options, self.mining.compat):
            return None
        parts = {"candidates": self.candidates(name), **self.rescorer.parts()}
        if self.config.rescorer.order == "teacher":
            parts |= parts_lib.mining_parts(self.options, self.config) | self.exclusion_parts()
        else:
            parts["mining.exclude.same_text"] = self.exclusions.same_text
        return self.workdir.candidates(f"{name}.rescored", parts, self.about)

    @functools.cached_property
    def calibrated(self) -> tuple[str, ...]:
        """The rules whose value is 'auto'."""
        return calibrated(self.config.mining)

    @functools.cached_property
    def options(self) -> Options:
        """How to mine, its preset in effect; where a value is 'auto', the paper's is used."""
        asked = dataclasses.replace(self.mining.options, seed=self.config.seed)
        compat = self.mining.compat
        most = max(map(len, self.positives().values())) if compat else 0
        rescored = bool(self.config.rescorer.model)
        return compatible(asked, compat, most, rescored=rescored)

    @functools.cached_property
    def mining(self) -> Mining:
        """How to mine, as configured."""
        return blocks.read(Mining, self.config.mining)

    @property
    def exclusions(self) -> Exclude:
        """Which passages are never negatives."""
        return self.mining.exclusions

    @_once
    def audit(self) -> Artifact:
        """How many false negatives each rule lets in."""
        parts = {
            **self._candidate_parts(),
            **parts_lib.mining_parts(self.options, self.config),
            **self.exclusion_parts(),
            **self._values_of(Audit, "audit"),
            "seed": self.config.seed,
        }
        return self.workdir.audit(parts, self.about)

    def _candidate_parts(self) -> dict[str, Any]:
        """Of each teacher what it ranks high, and their order."""
        found = {
            f"candidates {name}": self.rescored(name) or self.candidates(name)
            for name in self.teacher_names
        }
        return found | {"mining.teachers": list(self.teacher_names)}

    def exclusion_parts(self) -> dict[str, Any]:
        """What decides which passages are never negatives."""
        parts = parts_lib.exclusion_parts(self.mining)
        if self.exclusions.own_text != "off" or self.exclusions.same_text:
            data, split = self.train_data, self.config.data.train_split
            parts["passages"] = self.texts(data, "passages")
            parts["queries"] = self.texts(data, f"queries-{split}")
        return parts

    @_once
    def negatives(self) -> Artifact:
        """What the rule kept."""
        parts = {
            **self._candidate_parts(),
            **parts_lib.mining_parts(self.options, self.config),
            **self.exclusion_parts(),
        }
        split = self.config.data.train_split
        if self.train_data.given.get(split):
            parts["mining.given"] = self.mining.given
            if self.mining.given != "ignore":
                parts["given"] = parts_lib.given_part(self.train_data.given[split])
        if self.calibrated:
            values = dict.fromkeys((f"mining.{VALUES[name]}" for name in self.calibrated), "auto")
            parts |= values | options.parts_of(self.mining.calibration, "mining.calibration.")
            parts["seed"] = self.config.seed
        return self.workdir.negatives(self.config.data.train_split, parts, self.about)

    @_once
    def checkpoints(self) -> Artifact:
        """The student while and after it trains."""
        mined = {
            name: parts_lib.Mined(part.negatives(), part.student.all_parts(), part.about)
            for name, part in self.sets.items()
        }
        found = parts_lib.training_parts(self.config, self.stages, mined, self.about)
        return self.workdir.checkpoints(*found)

    def result_parts(self) -> dict[str, Any]:
        """What the trained student is a function of."""
        last = list(self.stages.values())[-1]
        return {
            "checkpoints": self.checkpoints(),
            **parts_lib.result_parts(self.config, last),
        }

    @_once
    def evaluation(self) -> Artifact:
        """Scores on the test split."""
        data, split = self.test_data, self.config.data.test_split
        roles = [self.start_role, *(["student"] if self.trains else [])]
        parts = {
            f"{role} {table}": self.embeddings(role, data, table)
            for role in roles
            for table in ("passages", f"queries-{split}")
        }
        parts |= self.searching.parts()
        parts |= self._values_of(EvaluationOptions, "evaluation")
        parts["judgments"] = parts_lib.judgments_part(data.qrels[split], test=True)
        parts["data.test_split"] = split
        return self.workdir.evaluation(data.name, parts, self.about)

    def _student_parts(self) -> dict[str, Any]:
        if self.trains:
            return self.result_parts()
        return self.student.all_parts()

    def _said(self) -> Digest:
        """What a card and a report say of the run, as a part."""
        models = [f"{block}.model" for block in ("teacher", "student")]
        models += [f"teachers.{name}.model" for name in self.config.teachers]
        content = digest([self.config.name, self.recipe()])
        return Digest(content, fingerprints.SAID, ("name", "rounds", *models))

    def export(self) -> Artifact:
        """The folder other tools load."""
        parts = {**self._student_parts(), **self._values_of(Export, "export")}
        parts["said"] = self._said()
        if self.evaluates:
            parts["evaluation"] = self.evaluation()
        return self.workdir.export(parts, self.about)

    def report(self) -> Artifact:
        """report.html."""
        parts = {**self._student_parts(), **self._values_of(Report, "report")}
        parts["said"] = self._said()
        for name, part in self.sets.items() if "audit" in self.config.stages else ():
            of = "" if name == sets.MAIN_SET else f"{name}:"
            parts[f"{of}audit"] = part.audit()
        for name, part in self.sets.items() if "mine" in self.config.stages else ():
            of = "" if name == sets.MAIN_SET else f"{name}:"
            parts[f"{of}negatives"] = part.negatives()
        if self.evaluates:
            parts["evaluation"] = self.evaluation()
        return self.workdir.report(parts, self.about)

    def _values_of(self, cls: type, block: str) -> dict[str, Any]:
        """The values of a block that count."""
        return options.parts_of(blocks.read(cls, self.config[block]), f"{block}.")

    # --- what earlier stages made ---

    def open(self, role: str, data: Dataset, table: str) -> EmbeddingStore:
        """Finished vectors, whose checksums were read once in this run."""
        return self.stores.open(self.embeddings(role, data, table))

    def read_candidates(self, name: str) -> Candidates:
        """Finished candidates."""
        data = self.train_data
        return Candidates.read(need(self.candidates(name)).path, data.queries, data.corpus)

    @functools.cached_property
    def trained_student(self) -> Encoder:
        artifact = need(self.checkpoints())
        try:
            return load_trained(self.student.encoder, artifact.path, **self.config.result.to_dict())
        except DamagedCheckpoint as error:
            if artifact.path.resolve() not in error.folder.resolve().parents:
                raise
            stage = error.folder.name
            artifact.note_damage({f"{stage}/{name}": why for name, why in error.lost.items()})
            need(artifact)  # which says so
            raise

    @property
    def mining_rule(self) -> str:
        """The rule and its values, for people."""
        rule = self.options.rule.describe()
        if self.calibrated:
            rule = f"{self.config.mining.rule}, {' and '.join(self.calibrated)} calibrated"
        return rule

    def recipe(self) -> dict[str, Any]:
        """The choices a model card and a report state, by name."""
        return said.recipe(
            self.config,
            {name: (part.teacher_models, part.mining_rule) for name, part in self.sets.items()},
            self.stages,
            student=self.student,
            untrained=self.untrained,
            served=self.served,
        )

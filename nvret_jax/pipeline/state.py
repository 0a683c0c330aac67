"""One run: its config, workdir, data, encoders and mesh, which its stages share.

The stage that makes an artefact defines its parts. Parts are the few values that decide the
content: an embedding depends on the prompt of its own kind of text, not of the other; mining on the
value of the rule in use, not of the others. So a change rebuilds only what it must.
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
from nvret_jax.artifacts.fingerprints import About, Digest
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import sets, stages_of
from nvret_jax.data.dataset import Dataset, TextTable, content_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.reading import read_wanted
from nvret_jax.data.same_text import SameText, share_positives
from nvret_jax.mining import given
from nvret_jax.mining.options import Exclude, Mining, Options, calibrated, compatible
from nvret_jax.mining.options import Rescorer as RescorerOptions
from nvret_jax.models.options import EncoderOptions, TeacherOptions
from nvret_jax.options import blocks
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.encoders import (
    ConfiguredEncoder,
    Loading,
    PublishedStudent,
    Rescorer,
    ServedStudent,
)
from nvret_jax.pipeline.inputs import Stores
from nvret_jax.pipeline.searching import Searching
from nvret_jax.search.options import Search
from nvret_jax.search.rankers import teachers
from nvret_jax.training.options import Training


def once(describe: Callable[..., Any]) -> Callable[..., Any]:
    """Caches the result of a function of a run: an artefact's parts do not change during the run.

    Args:
        describe: (run, …) -> anything; further arguments are strings, or live as long as the run.
    """

    @functools.wraps(describe)
    def kept(run: Run, *args: Any) -> Any:
        key = (kept, *(arg if isinstance(arg, str) else id(arg) for arg in args))
        if key not in run.kept:
            run.kept[key] = describe(run, *args)
        return run.kept[key]

    return kept


class Run:
    """A config with its workdir.

    Attributes:
        config, workdir: as given.
        stores: finished embeddings.
        label: '' or, for one of several training sets, its folder below the whole run's workdir.
        loading: the settings for reading models, and those in memory.
        cut_counts: how many texts of a table a tokenizer cuts; see `truncation`.
        kept: cached results of functions of this run; see `once`.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        *,
        whole: Run | None = None,
        started: ConfigDict | None = None,
        read: dict[str, Dataset] | None = None,
    ):
        """A run.

        Args:
            whole: the whole run, if this is the part for one set.
            started: block of the student before the first of several rounds.
            read: data sets that are in memory; several runs may share it.
        """
        started = config.student if started is None else started
        self.config, self.workdir = config, workdir
        self._whole = whole
        self.kept: dict[tuple, Any] = {}
        self.stores = Stores()
        self.label = "" if whole is None else f"sets/{workdir.path.name}/"
        self.loading = self._loading() if whole is None else whole.loading
        read = {} if read is None else read
        self._read: dict[str, Dataset] = read if whole is None else whole._read
        self.cut_counts: dict[tuple, int] = {} if whole is None else whole.cut_counts
        self.student = self._encoder("student", config.student)
        # The meaning of "before". If nothing is trained, the student is evaluated as configured.
        self.untrained = self.student
        if self.trains:
            self.untrained = self._encoder("student", started, PublishedStudent)
        self.served = ServedStudent(self.student, config.export.max_length)

    def _loading(self) -> Loading:
        return Loading(
            mesh=lambda: self.mesh,
            download=self.config.download,
            seed=self.config.seed,
            dropout=lambda: max(stage.dropout for stage in self.training_stages.values()),
        )

    def _encoder(
        self, name: str, block: ConfigDict, cls: type[ConfiguredEncoder] = ConfiguredEncoder
    ) -> ConfiguredEncoder:
        options = EncoderOptions if name == "student" else TeacherOptions
        return cls(name, blocks.read(options, block), self.loading, self.label)

    @functools.cached_property
    def mesh(self) -> Mesh:
        if self._whole is not None:
            return self._whole.mesh
        return mesh_lib.make_mesh(**self.config.mesh.to_dict())

    @functools.cached_property
    def sets(self) -> dict[str, Run]:
        """The run that mines each used training set; 'train' is this one."""
        made = {}
        for name in sets.used_sets(self.config):
            if name == sets.MAIN_SET:
                made[name] = self
                continue
            config = sets.set_config(self.config, name)
            made[name] = Run(config, self.workdir.below(f"sets/{name}", config), whole=self)
        return made

    @functools.cached_property
    def training_stages(self) -> dict[str, Training]:
        """Name -> options of each stage of training."""
        blocks_of = stages_of(self.config).items()
        return {name: blocks.read(Training, block) for name, block in blocks_of}

    def release_teachers(self) -> None:
        """Frees all encoders but the student: nothing after mining needs their weights."""
        for set_run in self.sets.values():
            for encoder in set_run.encoders.values():
                encoder.release()
        kept = self.student.key
        for key in [key for key in self.loading.models if key != kept]:
            del self.loading.models[key]

    def release_untrained(self) -> None:
        """Frees the student before training, unless the trained one shares its weights."""
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
        """The teachers used in mining, the most accurate first."""
        return tuple(self.config.mining.teachers)

    @property
    def scorer_names(self) -> tuple[str, ...]:
        """Those teachers, then the others whose scores distillation fits."""
        return sets.scorers(self.config, self.teacher_names)

    @property
    def teacher_models(self) -> str:
        """The teachers' models, in words."""
        return ", ".join(self.block(name).model for name in self.teacher_names)

    def block(self, name: str) -> ConfigDict:
        """The config of one teacher."""
        return self.config.teacher if name == "teacher" else self.config.teachers[name]

    @functools.cached_property
    def encoders(self) -> dict[str, ConfiguredEncoder]:
        """The encoders among the teachers that mine or score."""
        return {
            name: self._encoder(name, self.block(name))
            for name in self.scorer_names
            if teachers.is_encoder(self.block(name).model)
        }

    @property
    def guide(self) -> str:
        """The first teacher that mines and is an encoder, whose vectors others read; '': none."""
        if sets.MAIN_SET not in self.sets:
            return ""
        return next((name for name in self.teacher_names if name in self.encoders), "")

    def encoder(self, role: str) -> ConfiguredEncoder:
        """The encoder of a role: a teacher's name, 'student' or 'student-start'.

        The roles of the student are about evaluation: 'student-start' is the published model,
        'student' the model as its export serves it.
        """
        if role == "student-start":
            return self.untrained
        return self.served if role == "student" else self.encoders[role]

    # --- data ---

    @functools.cached_property
    def _datasets(self) -> dict[str, Dataset]:
        """By spec, so that identical training and test data are read once."""
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
        """The dev split, or '' if there is none."""
        split = self.config.data.dev_split
        if not (self.trains and split and self.config.data.train):
            return ""
        if split not in self.train_data.qrels:
            logging.warning(
                "data set %s has no split %r: training continues without dev scores",
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

    @once
    def positives(self) -> dict[str, list[str]]:
        """Judged positives of the training queries, by query id; equal queries share theirs."""
        data = self.config.data
        judged = self.train_data.positives(data.train_split, data.min_relevance)
        if not self.exclusions.same_text:
            return judged
        return share_positives(judged, self.train_data.queries)

    @functools.cached_property
    def passage_texts(self) -> SameText | None:
        """Which training passages have equal texts; None if every id is a distinct text."""
        return SameText.of(self.train_data.corpus.texts) if self.exclusions.same_text else None

    @once
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
        """'cpu', 'gpu' or 'tpu': known before the mesh, which may be invalid."""
        return platforms.here()

    @functools.cached_property
    def searching(self) -> Searching:
        """How vectors are searched."""
        read = blocks.read(Search, self.config.search)
        return Searching(read, lambda: self.mesh, self.platform)

    @once
    def text_digest(self, data: Dataset, name: str) -> str:
        """A hash of the ids and texts of one table."""
        return content_hash(self.table(data, name)[1], TextTable((), []), {})

    # --- parts of artefacts ---

    def is_test(self, data: Dataset) -> bool:
        """Whether this is only test data."""
        found = self._datasets
        config = self.config.data
        return data is found.get(config.test) and data is not found.get(config.train)

    def texts(self, data: Dataset, table: str) -> Digest:
        """The texts of a table, as a part."""
        return parts_lib.texts_part(
            self.text_digest(data, table), test=self.is_test(data), table=table
        )

    @functools.cached_property
    def about(self) -> About:
        """What reasons need to name a change."""
        names: dict[str, str] = {}
        if self._whole is not None:
            names = sets.key_names(self._whole.config, self.workdir.path.name)
        return About(names, parts_lib.values_of(self.config))

    @functools.cached_property
    def start_role(self) -> str:
        """The role with the untrained student's vectors: a teacher, if they are the same."""
        for name, encoder in self.encoders.items() if "embed" in self.config.stages else ():
            if encoder.same_as(self.untrained):
                return name
        return "student-start"

    @functools.cached_property
    def rescorer(self) -> Rescorer | None:
        """The rescorer; None if there is none, or no rule needs its scores."""
        read = blocks.read(RescorerOptions, self.config.rescorer)
        return Rescorer(read, self.loading, lambda: self.train_data) if read.model else None

    @functools.cached_property
    def calibrated(self) -> tuple[str, ...]:
        """The rules whose value is 'auto'."""
        return calibrated(self.config.mining)

    @functools.cached_property
    def options(self) -> Options:
        """How to mine, with the preset applied; the paper's value in place of 'auto'."""
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
        """The options of exclusions."""
        return self.mining.exclusions

    def values_of(self, cls: type, block: str) -> dict[str, Any]:
        """The values of a block that count."""
        return options.parts_of(blocks.read(cls, self.config[block]), f"{block}.")

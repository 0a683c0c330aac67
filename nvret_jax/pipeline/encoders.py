"""The models of a run: teachers, student and rescorer, loaded when first used.

A config names them; this module resolves the names, and defines on what their output depends:
`parts` come only from the files, so that the state of every stage is known before anything is
loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from nvret_jax import platforms
from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.fingerprints import Digest
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.mining.options import Options
from nvret_jax.mining.options import Rescorer as RescorerOptions
from nvret_jax.mining.rescoring import ScorePairs, text_scorer
from nvret_jax.models import lora, precision
from nvret_jax.models.attention import kernels
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.options import LoraConfig, TeacherOptions
from nvret_jax.models.pretrained import weights
from nvret_jax.models.pretrained.resolve import resolve
from nvret_jax.models.pretrained.spec import EncoderSpec, read_spec
from nvret_jax.models.pretrained.tokenizer import Tokenizer
from nvret_jax.models.tokenize import ModelTokenizer, TextTokens
from nvret_jax.options import parts_of
from nvret_jax.training.initial import randomised


@dataclasses.dataclass
class Loading:
    """The settings for reading the models of a run, and the models in memory.

    Attributes:
        mesh: returns the mesh of the weights; called when the first model is loaded.
        download: whether hub models may be fetched.
        seed: of new weights and adapters.
        dropout: gives the rate of the student's backbone while it trains; one for all stages, as
            it is part of the model.
        models: the encoders that are loaded, by the settings they were read with.
        tokenizers: the loaded ones, by folder.
    """

    mesh: Callable[[], Mesh]
    download: bool = False
    seed: int = 0
    dropout: Callable[[], float] = float
    models: dict[str, Encoder] = dataclasses.field(default_factory=dict)
    tokenizers: dict[str, ModelTokenizer] = dataclasses.field(default_factory=dict)


class ConfiguredEncoder:
    """An encoder, a teacher or the student, as configured; loaded when first used."""

    def __init__(self, name: str, config: TeacherOptions, loading: Loading, label: str = ""):
        """An encoder.

        Args:
            name: 'teacher', 'student', or the name of another teacher.
            config: its options.
            loading: what it is read with.
            label: before its name in messages.
        """
        self.name, self.config, self.loading, self._label = name, config, loading, label

    @functools.cached_property
    def folder(self) -> epath.Path:
        return resolve(self.config.model, download=self.loading.download)

    def _overrides(self) -> dict[str, Any]:
        return self.config.overrides

    @functools.cached_property
    def lora(self) -> LoraConfig | None:
        """The new adapters of the encoder, or None."""
        return self.config.lora

    @functools.cached_property
    def _tokenizer(self) -> ModelTokenizer:
        """The model's own; read once for all encoders and sets."""
        folder, read = self._own[1], self.loading.tokenizers
        if str(folder) not in read:
            read[str(folder)] = ModelTokenizer.from_folder(folder)
        return read[str(folder)]

    def count_cut(self, texts: Sequence[str], kind: str) -> int:
        """How many of the texts are longer than the length of their kind."""
        tokens = TextTokens(self.spec, self._tokenizer, self._own[1])
        return tokens.longer(texts, kind, self.length(kind))

    @functools.cached_property
    def _own(self) -> tuple[EncoderSpec, epath.Path]:
        """The model with the configured overrides, at its own length."""
        return read_spec(self.folder, **self._overrides())

    def length(self, kind: str) -> int:
        """Tokens kept of a text of this kind."""
        return self.config.length(kind) or self._own[0].max_length

    @functools.cached_property
    def spec(self) -> EncoderSpec:
        """The spec for reading and exporting the encoder, with the longer of the two lengths."""
        positions = self._own[0].backbone.max_tokens
        for kind in ("query", "passage"):
            if (length := self.length(kind)) > positions:
                raise InputError(
                    f"{self._label}{self.key_prefix}{kind}_length={length}: the model takes at "
                    f"most {positions} tokens; use that or less, or 0 for its own length"
                )
        longest = max(self.length("query"), self.length("passage"))
        return read_spec(self.folder, max_length=longest, **self._overrides())[0]

    @functools.cached_property
    def _content(self) -> dict[str, Digest]:
        """Hashes of the folder's content, without loading it."""
        spec, folder = self._own
        with weights.Checkpoint(folder):
            pass  # a truncated file is detected before anything is made
        files = weights.weight_files(folder)
        for name in spec.dense_folders:
            files += weights.weight_files(self.folder / name)
        sums = "".join(weights.file_sha256(f) for f in files)
        keys = (f"{self.key_prefix}model",)
        return {
            "model": Digest(
                hashlib.sha256(sums.encode()).hexdigest(), f"the weights of {keys[0]}", keys
            ),
            "tokenizer": Digest(self._tokenizer.fingerprint, f"the tokenizer of {keys[0]}", keys),
        }

    @property
    def key_prefix(self) -> str:
        """Of the config's keys of this block."""
        named = self.name not in ("teacher", "student")
        return f"teachers.{self.name}." if named else f"{self.name}."

    def parts(self, kind: str) -> dict[str, Any]:
        """What decides this encoder's embedding of a text of one kind, by config key."""
        return {
            key if key == "seed" else f"{self.key_prefix}{key}": value
            for key, value in self._values(kind).items()
        }

    def all_parts(self) -> dict[str, Any]:
        """The same for queries and passages together."""
        return self.parts("query") | self.parts("passage")

    def tokens_of(self, kind: str) -> tuple[str, str | None]:
        """What decides the tokens of an uncut text of a kind: tokenizer and prompt."""
        return self._tokenizer.fingerprint, self.spec.prompt(kind)

    def same_as(self, other: ConfiguredEncoder) -> bool:
        """Whether both give the same vectors, of queries and of passages."""

        def hashed(encoder: ConfiguredEncoder) -> list[dict[str, Any]]:
            return [fingerprints.hashed(encoder._values(kind)) for kind in ("query", "passage")]

        return hashed(self) == hashed(other)

    def _values(self, kind: str) -> dict[str, Any]:
        spec = self.spec
        return {
            **self._content,
            "pooling": spec.pooling,
            "normalize": spec.normalize,
            "dtype": self.config.dtype,
            f"{kind}_prompt": spec.prompt(kind),
            f"{kind}_length": self.length(kind),
            **self._unusual,
        }

    @functools.cached_property
    def _unusual(self) -> dict[str, Any]:
        """Parts that most models do not have; absent there, so that their artefacts stay valid."""
        parts: dict[str, Any] = {}
        if self.config.param_dtype != "float32":
            parts["param_dtype"] = self.config.param_dtype
        if self.config.init != "pretrained":
            parts |= {"init": self.config.init, "seed": self.loading.seed}
        if self.spec.projects:
            parts |= {"projection": self.spec.width, "seed": self.loading.seed}
        if self.spec.prompt_in_pooling != "all":
            parts["prompt_in_pooling"] = self.spec.prompt_in_pooling
        if self.spec.truncate_dim is not None:
            parts["truncate_dim"] = self.spec.truncate_dim
        if hasattr(self.spec.backbone, "causal"):
            parts["bidirectional"] = not self.spec.backbone.causal
        if self.lora is not None:
            # Reported before anything is made.
            layers = self.spec.backbone.num_hidden_layers
            lora.matches(self.spec.family.table, self.lora.targets, layers)
            for key in ("rank", "alpha", "dropout", "targets"):
                parts[f"lora_{key}"] = getattr(self.lora, key)
        if self.config.adapter:
            folder = paths.local(self.config.adapter, "adapter")
            lora.read_config(folder)  # raises InputError if it is not an adapter
            files = [folder / lora.CONFIG_FILE, folder / lora.WEIGHTS_FILE]
            if not files[1].exists():
                raise InputError(f"{files[1]}: no such file; an adapter is a folder with it")
            sums = "".join(weights.file_sha256(file) for file in files)
            key = f"{self.key_prefix}adapter"
            parts["adapter"] = Digest(
                hashlib.sha256(sums.encode()).hexdigest(), f"the files of {key}", (key,)
            )
        return parts

    @property
    def dropout(self) -> float:
        """The dropout rate of the backbone in training."""
        return self.loading.dropout() if self.name == "student" else 0.0

    @functools.cached_property
    def key(self) -> str:
        """What the weights in memory depend on: encoders with the same key share them."""
        read = self._overrides() | {"query_prompt": None, "passage_prompt": None}
        config, seed = self.config, self.loading.seed
        more = [self.lora, config.adapter, config.attention, config.remat, config.init]
        seeded = self.lora or config.init == "random" or self.spec.projects
        more.append(seed if seeded else 0)
        return repr([str(self.folder), sorted(read.items()), self.dropout, more])

    @functools.cached_property
    def encoder(self) -> Encoder:
        models = self.loading.models
        if self.key not in models:
            encoder = Encoder.from_pretrained(
                str(self.folder),
                mesh=self.loading.mesh(),
                max_length=self.spec.max_length,
                dropout=self.dropout,
                lora=self.lora,
                adapter=self.config.adapter or None,
                seed=self.loading.seed,
                attention=self.config.attention,
                remat=self.config.remat,
                **self._overrides(),
            )
            if self.config.init == "random":
                encoder = randomised(encoder, self.loading.seed)
            models[self.key] = encoder
        return models[self.key].with_texts(
            query_prompt=self.spec.query_prompt,
            passage_prompt=self.spec.passage_prompt,
            max_length=self.spec.max_length,
        )

    def check_kernel(self, asked: str) -> None:
        """Raises InputError if its attention cannot be computed as configured, on this mesh.

        Args:
            asked: `embed.dtype`.
        """
        name, platform = self.config.attention, platforms.of(self.loading.mesh())
        kernels.check_platform(name, platform)
        embeds = precision.embedding_dtype(asked, self.config.dtype, platform)
        for dtype in (self.config.dtype, embeds):
            kernels.check_options(name, dtype=dtype, drops=self.dropout > 0)

    def check_prompts(self) -> None:
        """Raises InputError if a prompt leaves no space for the text after it."""
        for kind in ("query", "passage"):
            prompt, length = self.spec.prompt(kind), self.length(kind)
            texts = TextTokens(self.spec, self._tokenizer, self.folder)
            taken = texts.taken(kind) if prompt else 0
            if taken >= length:
                raise InputError(
                    f"{self._label}{self.name}: {kind}_length={length}, but the prompt {prompt!r} "
                    f"alone takes {taken} tokens; raise the length"
                )

    def release(self) -> None:
        """Frees the encoder; it is loaded again on demand."""
        self.__dict__.pop("encoder", None)


class PublishedStudent(ConfiguredEncoder):
    """The student as published, before training: what "before" measures.

    It has no new projection. Lengths are the model's own, whatever it is trained with, and so is
    everything else that its folder defines: prompts, pooling, the direction of attention. What the
    folder does not define (the prompts of a model that documents them in its README only, the
    pooling of a bare backbone) is as configured.
    """

    def __init__(self, name: str, config: TeacherOptions, loading: Loading, label: str = ""):
        own = dataclasses.replace(config, query_length=0, passage_length=0, projection=0)
        super().__init__(name, own, loading, label)

    @functools.cached_property
    def _stated(self) -> bool:
        """Whether the folder defines how texts become vectors; a bare backbone does not."""
        return (self.folder / "modules.json").exists()

    def _overrides(self) -> dict[str, Any]:
        given = super()._overrides()
        if not self._stated:
            return given
        own = {**given, "pooling": None, "prompt_in_pooling": None, "bidirectional": None}
        stated, _ = read_spec(self.folder, **own | {"query_prompt": None, "passage_prompt": None})
        if stated.query_prompt or stated.passage_prompt:
            own |= {"query_prompt": None, "passage_prompt": None}
        return own


class ServedStudent(ConfiguredEncoder):
    """The trained student as its export serves it: what "after" measures.

    An export has one length, and its readers cut both kinds of texts there: `export.max_length`,
    or the longer one of the student's. It shares the weights of the student.
    """

    def __init__(self, student: ConfiguredEncoder, max_length: int):
        super().__init__(student.name, student.config, student.loading, student._label)
        self._student, self._max_length = student, max_length

    def length(self, kind: str) -> int:
        return self._max_length or self._student.spec.max_length

    def _values(self, kind: str) -> dict[str, Any]:
        keys = ("export.max_length", "student.query_length", "student.passage_length")
        length = Digest(str(self.length(kind)), "the length of the export", keys)
        return super()._values(kind) | {f"{kind}_length": length}

    def check_length(self) -> None:
        """Raises InputError if the model has too few positions for that length."""
        length, positions = self.length("passage"), self._own[0].backbone.max_tokens
        if length > positions:
            raise InputError(
                f"export.max_length={length}: the model takes at most {positions} tokens; use that "
                "or less, or 0 for the student's own"
            )


class Rescorer:
    """The cross-encoder, as configured; loaded when first used."""

    def __init__(self, config: RescorerOptions, loading: Loading, data: Callable[[], Dataset]):
        """A cross-encoder.

        Args:
            config: its options.
            loading: what it is read with.
            data: returns the data set; called when pairs are scored.
        """
        self.config, self._loading, self._data = config, loading, data

    def is_needed(self, mining: Options, compat: str) -> bool:
        """Whether anything reads its scores; in the teacher's order, only a bound or a draw does.

        Args:
            mining: how it is mined, the preset in effect.
            compat: the preset.
        """
        if self.config.order == "unchanged":
            return False
        rule = mining.rule
        bounded = rule.has_ceiling or np.isfinite(rule.min_score)
        if compat == "sentence_transformers":
            return bounded  # which skips a cross-encoder if nothing is filtered
        return self.config.order == "rescored" or bounded or "softmax" in mining.sampling

    @functools.cached_property
    def _folder(self) -> epath.Path:
        return resolve(self.config.model, download=self._loading.download)

    def parts(self) -> dict[str, Any]:
        """What decides its scores and their number."""
        files = [*weights.weight_files(self._folder), self._folder / "config.json"]
        keys = ("rescorer.model",)
        sums = "".join(weights.file_sha256(file) for file in files)
        tokenizer = Tokenizer.from_folder(self._folder).fingerprint
        return {
            "rescorer.model": Digest(
                hashlib.sha256(sums.encode()).hexdigest(), "the weights of rescorer.model", keys
            ),
            "rescorer.tokenizer": Digest(tokenizer, "the tokenizer of rescorer.model", keys),
            **parts_of(self.config, "rescorer."),
        }

    @functools.cached_property
    def model(self) -> CrossEncoder:
        return CrossEncoder.from_pretrained(
            str(self._folder),
            mesh=self._loading.mesh(),
            dtype=self.config.dtype,
            max_length=self.config.length or None,
        )

    @functools.cached_property
    def score_pairs(self) -> ScorePairs:
        """Scores of pairs of rows of the data."""
        data = self._data()
        return text_scorer(self.model.score, data.queries.texts, data.corpus.texts)

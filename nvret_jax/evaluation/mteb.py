"""An encoder as a model that mteb evaluates (https://github.com/embeddings-benchmark/mteb, 2.x).

    import mteb
    from nvret_jax.evaluation.mteb import Model

    results = mteb.evaluate(Model(encoder), mteb.get_tasks(["SciFact", "STS12"]))

Retrieval is searched here: the corpus is embedded once, its vectors are distributed over all
devices of the encoder's mesh, and every query gets its exact best passages (mteb's SearchProtocol).
Other tasks request embeddings (EncoderProtocol). mteb is imported where it is needed: the extra
`mteb` installs it, with torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from nvret_jax import options
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import as_run
from nvret_jax.models.encoder import Encoder
from nvret_jax.search.index.backend import BACKEND, make_index

_KINDS = {"query": "query", "document": "passage"}
_TAKES = {
    "name": options.text("a name such as 'owner/model'", unset=True),
    "revision": options.text("a revision", unset=True),
    "instruction": options.text("a template with '{instruction}'", lines=True, unset=True),
    "backend": BACKEND,
}


class Model:
    """An encoder for `mteb.evaluate`, of both its protocols: search, and encoding.

    Attributes:
        encoder: that embeds.
        mteb_model_meta: mteb's `ModelMeta` of it.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str | None = None,
        revision: str | None = None,
        prompts: Mapping[str, str] | None = None,
        instruction: str | None = None,
        training_datasets: Iterable[str] | None = None,
        backend: str = "auto",
    ):
        """Wraps an encoder.

        Args:
            encoder: of `Encoder.from_pretrained`, or trained.
            name: 'owner/model', under which mteb keeps results; None: that of the encoder.
            revision: likewise; None: a hash of weights, tokenizer and settings.
            prompts: texts put before the texts, by task: 'NQ-query', 'NQ', 'Retrieval-query',
                'Retrieval', 'query' or 'document', the first that exists. Without any, queries and
                passages get the encoder's own prompts and texts of other tasks none.
            instruction: a template such as 'Instruct: {instruction}\\nQuery: ', filled with the
                prompt that mteb gives a task; for queries, and for texts of tasks that have none.
            training_datasets: mteb's names of the training data.
            backend: of the search: 'auto', 'device' or 'faiss'.

        Raises:
            InputError: not an encoder, or a late-interaction one; invalid arguments.
        """
        options.check_arguments("mteb.Model", locals(), _TAKES)
        if not isinstance(encoder, Encoder):
            raise InputError(
                f"mteb.Model: encoder={options.shown(encoder)} ({type(encoder).__name__}): "
                "expected an Encoder, such as Encoder.from_pretrained(…)"
            )
        if encoder.spec.late is not None:
            raise InputError("mteb.Model: a late-interaction model has no vector for a whole text")
        if instruction is not None and "{instruction}" not in instruction:
            raise InputError(
                f"mteb.Model: instruction={options.shown(instruction)}: lacks '{{instruction}}'"
            )
        for key, prompt in (prompts or {}).items():
            if not isinstance(key, str) or not isinstance(prompt, str):
                raise InputError(f"mteb.Model: prompts: {key!r}: {prompt!r}: expected two texts")
        self.encoder = encoder
        self._prompts, self._instruction = dict(prompts or {}), instruction
        self._backend = backend
        self._meta = _Meta(name, revision, training_datasets)
        self._corpus: _Corpus | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's ModelMeta."""
        return self._meta.of(self.encoder, bool(self._prompts or self._instruction))

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeds the texts of a loader.

        Args:
            inputs: batches with 'text'.
            task_metadata: of mteb; its name and type choose the prompt.
            prompt_type: 'query', 'document' or None.
            hf_split, hf_subset, kwargs: of mteb; `show_progress_bar` is used.

        Returns:
            float32 [texts, D].
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self._embedded(texts, task_metadata, prompt_type, kwargs)

    def _embedded(
        self, texts: Sequence[str], task: Any, prompt_type: Any, how: Mapping[str, Any]
    ) -> np.ndarray:
        side = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        kind = _KINDS.get(side, "passage")
        prompt, encoder = self.prompt(task, side), self.encoder
        if prompt != encoder.spec.prompt(kind):
            encoder = encoder.with_texts(
                query_prompt=prompt, passage_prompt=prompt, max_length=encoder.spec.max_length
            )
        progress = bool(how.get("show_progress_bar", False))
        emb_nd = encoder.encode(texts, kind=kind, progress=progress)
        if self.encoder.spec.similarity == "cosine" and not self.encoder.spec.normalize:
            emb_nd = _unit(emb_nd)  # so that inner products are cosines
        return emb_nd

    def prompt(self, task: Any, side: str | None) -> str:
        """The text put before a text.

        Args:
            task: mteb's metadata of a task.
            side: 'query', 'document', or None for tasks without sides.
        """
        keys = [name for one in (task.name, task.type) for name in (f"{one}-{side}", one)]
        for key in [*keys, side]:
            if key in self._prompts:
                return self._prompts[key]
        if self._instruction is not None and side != "document":
            asked = task.prompt
            if isinstance(asked, Mapping):
                asked = asked.get(side or "query")
            if asked:
                return self._instruction.format(instruction=asked)
        return "" if side is None else self.encoder.spec.prompt(_KINDS[side])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Scores [N, M] of vectors from `encode`; or [M] of one with many."""
        return np.atleast_2d(_array(embeddings1)) @ np.atleast_2d(_array(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Scores [N] of vectors at the same positions."""
        return np.einsum("nd,nd->n", _array(embeddings1), _array(embeddings2))

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        encode_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Embeds a corpus and prepares it for search.

        Args:
            corpus: rows with 'id', 'text' and perhaps 'title'.
            task_metadata, hf_split, hf_subset, encode_kwargs, kwargs: of mteb.
        """
        ids = [str(one) for one in corpus["id"]]
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(ids)
        texts = [
            f"{title or ''} {text}".strip()
            for title, text in zip(titles, corpus["text"], strict=True)
        ]
        vectors_nd = self._embedded(texts, task_metadata, "document", encode_kwargs or {})
        index = make_index(vectors_nd, mesh=self.encoder.mesh, backend=self._backend)
        self._corpus = _Corpus(ids, vectors_nd, index)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        hf_split: str = "",
        hf_subset: str = "",
        encode_kwargs: Mapping[str, Any] | None = None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """The best passages for each query, from the corpus indexed last.

        Args:
            queries: rows with 'id', 'text' and perhaps 'instruction'.
            top_k: passages per query.
            top_ranked: query id -> the passages that may be found; None: all.
            task_metadata, hf_split, hf_subset, encode_kwargs, kwargs: of mteb.

        Returns:
            query id -> passage id -> score. Equal scores are lowered by single float32 steps, in
            the order of the corpus, so that any tool ranks them in the same order.

        Raises:
            InputError: nothing was indexed.
        """
        if self._corpus is None:
            raise InputError("mteb.Model: search before index; give mteb.evaluate the model")
        ids = [str(one) for one in queries["id"]]
        queries_qd = self._embedded(
            _query_texts(queries), task_metadata, "query", encode_kwargs or {}
        )
        scores_qk, rows_qk = self._corpus.search(
            queries_qd, top_k, None if top_ranked is None else [top_ranked.get(i, ()) for i in ids]
        )
        return as_run(ids, self._corpus.ids, scores_qk, rows_qk)


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """An indexed corpus: passage ids, their vectors, and the index."""

    ids: list[str]
    vectors_nd: np.ndarray
    index: Any

    def search(
        self, queries_qd: np.ndarray, k: int, allowed: Sequence[Iterable[str]] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows [Q, k]; only of some passages, if `allowed` lists them per query."""
        count = len(self.ids)
        k = min(k, count)
        if allowed is None:
            return self.index.search(queries_qd, k)
        row = {passage: number for number, passage in enumerate(self.ids)}
        wanted = [np.array(sorted({row[p] for p in one if p in row}), np.int32) for one in allowed]
        scores_qk = np.full((len(queries_qd), k), -np.inf, np.float32)
        rows_qk = np.full((len(queries_qd), k), -1, np.int32)
        # Many candidates are searched as the corpus without a few passages; few are scored
        # directly.
        many = [q for q, rows in enumerate(wanted) if 2 * len(rows) > count]
        if many:
            everything = np.arange(count, dtype=np.int32)
            left_out = [np.setdiff1d(everything, wanted[q]) for q in many]
            found = self.index.search(queries_qd[many], k, exclude=left_out)
            scores_qk[many], rows_qk[many] = found
        for q in sorted({*range(len(wanted))} - {*many}):
            rows = wanted[q]
            scores = self.vectors_nd[rows] @ queries_qd[q]
            order = np.lexsort((rows, -scores))[:k]
            scores_qk[q, : len(order)], rows_qk[q, : len(order)] = scores[order], rows[order]
        return scores_qk, rows_qk


def _query_texts(queries: Any) -> list[str]:
    """Queries in mteb's form: an instruction after the text, a conversation as one text."""
    texts = [_spoken(text) for text in queries["text"]]
    if "instruction" not in queries.column_names:
        return texts
    return [
        f"{text} {more}" if more is not None else text
        for text, more in zip(texts, queries["instruction"], strict=True)
    ]


def _spoken(text: Any) -> str:
    if isinstance(text, str):
        return text
    turns = [one if isinstance(one, str) else f"{one['role']}: {one['content']}" for one in text]
    return "; ".join(turns)


@dataclasses.dataclass(frozen=True)
class _Meta:
    """The user's values for mteb's ModelMeta."""

    name: str | None
    revision: str | None
    training_datasets: Iterable[str] | None

    def of(self, encoder: Encoder, instructed: bool) -> Any:
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        name = self.name or encoder.name.partition("@")[0]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            name = "nvret_jax/" + (re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]))
        arrays = jax.tree.leaves(nnx.split(encoder.model)[1])
        dot = encoder.spec.similarity == "dot"
        prompts = encoder.spec.query_prompt or encoder.spec.passage_prompt
        return ModelMeta(
            loader=None,
            name=name,
            revision=self.revision or encoder.fingerprint[:40],
            release_date=None,
            languages=None,
            n_parameters=sum(array.size for array in arrays),
            memory_usage_mb=round(sum(array.nbytes for array in arrays) / 2**20, 1),
            max_tokens=encoder.spec.max_length,
            embed_dim=encoder.width,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["JAX"],
            similarity_fn_name=ScoringFunction.DOT_PRODUCT if dot else ScoringFunction.COSINE,
            use_instructions=bool(instructed or prompts),
            training_datasets=None if self.training_datasets is None else {*self.training_datasets},
        )


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float32)


def _unit(emb_nd: np.ndarray) -> np.ndarray:
    return emb_nd / np.maximum(np.linalg.norm(emb_nd, axis=-1, keepdims=True), 1e-12)

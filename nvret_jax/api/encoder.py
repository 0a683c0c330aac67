"""The public `Encoder`, with the calls of sentence-transformers.

    encoder = Encoder.from_pretrained("all-MiniLM-L6-v2")
    encoder.encode_query("who was first on the moon?")          # float32 [384]
    encoder.encode(texts, batch_size=64, show_progress_bar=True, truncate_dim=128)
    encoder.similarity(encoder.encode_query(questions), encoder.encode_document(texts))

`models.encoder.Encoder` does the computation; here names are translated and results shaped. The
differences from sentence-transformers are deliberate and few:

- Results are numpy arrays, float32. Nothing here is a torch tensor.
- `encode` embeds passages, with the prompt for passages if the model has one; sentence-transformers
  uses no prompt by default. `prompt=""` switches it off in both.
- The mesh decides where it runs, so there is no `device`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.data import arguments
from nvret_jax.errors import InputError
from nvret_jax.export import hub
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models import encoder as encoder_lib
from nvret_jax.models.options import EncoderOptions
from nvret_jax.options import calls
from nvret_jax.report.history import History

_KINDS = {"query": "query", "passage": "passage", "document": "passage", "corpus": "passage"}
_TAKES = {
    "prompt": options.takes_of(EncoderOptions)["query_prompt"],
    "prompt_name": options.choice(*_KINDS, unset=True),
    "batch_size": options.whole(1, what="texts", unset=True),
    "show_progress_bar": options.flag(unset=True),
    "normalize_embeddings": options.flag(),
    "truncate_dim": options.whole(1, what="components", unset=True),
}
_NO_TORCH = "results are numpy arrays; torch.from_numpy(encoder.encode(…)) makes a tensor"
# Arguments of sentence-transformers that do not apply here -> the value that changes nothing, and
# what to do instead.
_ABSENT = {
    "convert_to_tensor": (False, _NO_TORCH),
    "convert_to_numpy": (True, _NO_TORCH),
    "output_value": (
        "sentence_embedding",
        "one vector per text is returned; encode_tokens gives those of a late-interaction model's "
        "tokens",
    ),
    "precision": ("float32", "embeddings are float32; round them with numpy"),
    "device": (None, "the mesh decides, as in Encoder.from_pretrained(mesh=make_mesh(data=1))"),
    "pool": (None, "one call uses all devices of the mesh"),
    "chunk_size": (None, "texts stream through the devices by themselves"),
}
_OTHERS = {
    **{name: instead for name, (_, instead) in _ABSENT.items()},
    "sentences": "give the texts first, as in encode(texts)",
    "inputs": "give the texts first, as in encode(texts)",
    "task": "give prompt=",
    "num_workers": "texts stream through the devices by themselves",
}
_LOAD_OTHERS = {
    "model_name_or_path": "give the name first, as in from_pretrained(NAME)",
    "device": "give mesh=make_mesh(…)",
    "cache_folder": "set the environment variable HF_HUB_CACHE",
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "local_files_only": "nothing is downloaded unless download=True",
    "token": "set the environment variable HF_TOKEN",
    "use_auth_token": "set the environment variable HF_TOKEN",
    "revision": "it follows the name, as in 'owner/model@revision'",
    "trust_remote_code": "code of a model is never run",
    "prompts": "give query_prompt= and passage_prompt=",
    "default_prompt_name": "encode_query and encode_document choose the prompt",
    "truncate_dim": "encode(texts, truncate_dim=…) takes it",
    "similarity_fn_name": "the model's own similarity is used",
    "model_kwargs": "give dtype=, attention= or another argument by its name",
    "tokenizer_kwargs": "give max_length=",
    "config_kwargs": "give an argument by its name; help(Encoder.from_pretrained) lists them",
    "backend": "JAX computes; export() writes a folder for other programs",
    "max_seq_length": "give max_length=",
    "torch_dtype": "give dtype='bfloat16' or another name of a type",
}


class Encoder(encoder_lib.Encoder):
    """A model that turns texts into embeddings, on a mesh; `from_pretrained` reads one.

    Attributes:
        spec: what decides an embedding, apart from weights and tokenizer.
        tokenizer: the model's own.
        mesh: of the weights and the computation.
        folder: that the model was read from.
        name: as requested: a hub id, or a path as given.
        width: D, the length of an embedding.
        lora: the adapters of the model, or None.
        history: the measurements of an encoder returned by `train`; else empty.
    """

    history: History = History()

    def __init__(self, graphdef: Any, *args: Any, **kwargs: Any):
        if isinstance(graphdef, str | os.PathLike):
            model = os.fspath(graphdef)
            raise InputError(f"Encoder: read a model with Encoder.from_pretrained({model!r})")
        super().__init__(graphdef, *args, **kwargs)

    @classmethod
    def of(cls, encoder: encoder_lib.Encoder) -> Encoder:
        """An encoder of the package as one of this class, on the same weights."""
        return encoder._changed(cls)

    from_pretrained = classmethod(
        calls.checked(_LOAD_OTHERS)(encoder_lib.Encoder.from_pretrained.__func__)
    )

    @calls.checked(_OTHERS)
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        kind: str = "passage",
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: bool = False,
        warn: bool = True,
    ) -> np.ndarray:
        """Embeds one text or many.

        Args:
            texts: one str, or any number in anything that has an order: a list, a generator, an
                array, a column of a table.
            prompt_name: 'query', 'passage' or 'document': the same as `kind`.
            prompt: put before each text instead of the model's own; '' for none.
            batch_size: largest number of full-length texts per step, over all devices. By default
                the size of a step suits the device. Results do not depend on it.
            show_progress_bar, progress: show a bar.
            normalize_embeddings: give each vector unit length, after it was truncated.
            truncate_dim: number of leading components to keep of each vector.
            kind: 'passage' or 'query', which decides prompt and length.
            max_length: tokens to which a text is cut; default: the model's.
            token_budget: tokens (padding included) of a step per device; an alternative to
                `batch_size`.
            warn: log how many texts were cut, the first time some were.
            output_value, precision, convert_to_numpy, convert_to_tensor, device, pool, chunk_size:
                known to sentence-transformers, and refused unless they change nothing.

        Returns:
            float32 [D] for one str, else [len(texts), D], row i for text i; D is `truncate_dim` if
            that is given. On every process the same.

        Raises:
            InputError: invalid arguments, a text that is not a str, an embedding that is not
                finite, a late-interaction model; one line.
        """
        given = dict(locals())
        options.check_arguments("encode", given, _TAKES)
        for name, (value, instead) in _ABSENT.items():
            if given[name] is not value and given[name] != value:
                raise InputError(f"encode: {name}={options.shown(given[name])}: {instead}")
        kind = kind if prompt_name is None else _KINDS[prompt_name]
        encoder = self if prompt is None else self._with_prompt(prompt)
        if batch_size is not None and token_budget is None:
            tokens = self.spec.max_length if max_length is None else max_length
            token_budget = max(
                1, int(batch_size) * int(tokens) // mesh_lib.shards(self.mesh, "batch")
            )
        if truncate_dim is not None and truncate_dim > self.width:
            raise InputError(
                f"encode: truncate_dim={truncate_dim}: the embedding has {self.width} components"
            )
        single = isinstance(texts, str)
        emb_nd = encoder_lib.Encoder.encode(
            encoder,
            [texts] if single else texts,
            kind=kind,
            max_length=max_length,
            token_budget=token_budget,
            progress=progress or bool(show_progress_bar),
            warn=warn,
        )[:, :truncate_dim]
        if normalize_embeddings:
            emb_nd = _unit(emb_nd)
        emb_nd = np.ascontiguousarray(emb_nd)
        return emb_nd[0] if single else emb_nd

    def encode_query(self, texts: str | Sequence[str], *given: Any, **named: Any) -> np.ndarray:
        """Embeds queries, with the model's prompt for them; arguments as in `encode`."""
        return self.encode(texts, *given, **{"kind": "query", **named})

    def encode_document(self, texts: str | Sequence[str], *given: Any, **named: Any) -> np.ndarray:
        """Embeds passages, with the model's prompt for them; arguments as in `encode`."""
        return self.encode(texts, *given, **{"kind": "passage", **named})

    encode_query.__signature__ = encode_document.__signature__ = inspect.signature(encode)

    def _with_prompt(self, prompt: str) -> encoder_lib.Encoder:
        length = self.spec.max_length
        return self.with_texts(query_prompt=prompt, passage_prompt=prompt, max_length=length)

    @calls.checked()
    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """The similarity of vectors, by the measure of the model's authors.

        Args:
            embeddings1: [N, D], an array or convertible to one; or one vector.
            embeddings2: [M, D], likewise.

        Returns:
            float32 [N, M]: cosines, or inner products if the model uses those.

        Raises:
            InputError: vectors of different lengths; a late-interaction model.
        """
        a_nd, b_md = self._compared(embeddings1, embeddings2, "similarity")
        return a_nd @ b_md.T

    @calls.checked()
    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """The similarity of vectors at the same position, float32 [N]; see `similarity`."""
        a_nd, b_nd = self._compared(embeddings1, embeddings2, "similarity_pairwise")
        if len(a_nd) != len(b_nd):
            raise InputError(f"similarity_pairwise: {len(a_nd)} vectors and {len(b_nd)}")
        return np.einsum("nd,nd->n", a_nd, b_nd)

    def _compared(self, one: Any, other: Any, at: str) -> Iterator[np.ndarray]:
        if self.spec.similarity not in ("cosine", "dot"):
            raise InputError(f"{at}: a late-interaction model compares texts by their tokens")
        found = []
        for number, value in enumerate((one, other), 1):
            value = np.asarray(arguments.vectors(value, f"{at}: embeddings{number}"), np.float32)
            found.append(value[None] if value.ndim == 1 else value)
        a_nd, b_md = found
        if a_nd.ndim != 2 or b_md.ndim != 2 or a_nd.shape[1] != b_md.shape[1]:
            raise InputError(
                f"{at}: embeddings of shapes {a_nd.shape} and {b_md.shape}; expected [N, D] and "
                "[M, D]"
            )
        return (_unit(a_nd), _unit(b_md)) if self.spec.similarity == "cosine" else (a_nd, b_md)

    @calls.checked({"safe_serialization": "weights are always safetensors"})
    def save_pretrained(
        self, path: str | os.PathLike, *, dtype: str = "float32", overwrite: bool = False
    ) -> epath.Path:
        """Writes the model as a folder that sentence-transformers and transformers load.

        The same as `nv.export(encoder, path)`, which also takes a model card.

        Args:
            path: a folder; made with its parents.
            dtype: of the stored weights: 'float32' or 'float16'.
            overwrite: replace a folder that is not empty.

        Returns:
            The folder.

        Raises:
            InputError: as in `export`.
        """
        return export(self, path, dtype=dtype, overwrite=overwrite)

    @calls.checked(
        {
            "token": "set the environment variable HF_TOKEN",
            "exist_ok": "an existing repository is written to",
            "replace_model_card": "the card is that of export()",
        }
    )
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str = "Add the model",
        revision: str | None = None,
        create_pr: bool = False,
        dtype: str = "float32",
    ) -> str:
        """Uploads the model to the Hugging Face hub, in the layout of `save_pretrained`.

        Args:
            repo_id: 'owner/name'; created if it does not exist.
            private: of a new repository; None: the owner's default.
            commit_message: of the commit.
            revision: the branch; None: the main one.
            create_pr: open a pull request instead of a commit.
            dtype: of the stored weights.

        Returns:
            The URL of the commit.

        Raises:
            InputError: the hub refuses it or cannot be reached; no token; no such name.
        """
        return hub.push(
            self,
            repo_id,
            private=private,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            dtype=dtype,
        )

    @property
    def max_seq_length(self) -> int:
        """Tokens to which a text is cut; set by `max_length` of `from_pretrained` and `encode`."""
        return self.spec.max_length

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by the names that `encode` takes."""
        return {"query": self.spec.query_prompt, "document": self.spec.passage_prompt}

    @property
    def similarity_fn_name(self) -> str:
        """'cosine' or 'dot' ('maxsim' of a late-interaction model)."""
        return self.spec.similarity

    def get_sentence_embedding_dimension(self) -> int:
        """D, the length of an embedding; the same as `width`."""
        return self.width


def _unit(emb_nd: np.ndarray) -> np.ndarray:
    """Vectors scaled to unit length; zeros are unchanged."""
    norms_n = np.linalg.norm(emb_nd, axis=-1, keepdims=True)
    return emb_nd / np.maximum(norms_n, 1e-12)

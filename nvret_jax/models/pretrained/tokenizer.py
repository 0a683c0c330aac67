"""Text to token ids, by the model's own `tokenizer.json` and the Rust library behind it.

Choices:

- `tokenizers` is used directly: `transformers` uses it for fast tokenizers, and importing it
  directly saves a second. A folder that has only vocabulary files is converted by
  `transformers.AutoTokenizer` (local files, no remote code).
- A tokenizer.json often contains truncation and padding settings (MiniLM's cuts at 128 and pads
  everything to 128). Both are switched off: the caller sets the length, and padding is done per
  batch.
- The Rust object stores its truncation length as state. It is set and used under a lock, so that
  several threads may use one tokenizer, each with its own length.
- Texts are encoded in blocks, because the library's result objects are many times larger than the
  ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.pretrained.folder import Fields, encodable, inside, read_object, shown

_BLOCK = 1024  # texts encoded at a time
_HIGHEST = (1 << 24) - 1  # token id; no vocabulary has a tenth of that
_LONGEST = 10**6  # a model_max_length above this means "unknown"
# The source files of tokenizers not made by the `tokenizers` library.
_VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_TOKENS = ("special_tokens_map.json", "added_tokens.json")  # of old transformers
_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)
# What a saved tokenizer_config.json keeps in addition to the special tokens. Only tokenizer.json
# decides the ids of a text, so settings with which some reader would change them (`add_bos_token`,
# `do_lower_case`, a class with further rules) are dropped, and so is everything that does not
# affect embeddings: code (`auto_map`), chat templates, paths, and bookkeeping that transformers 5
# adds and 4 refuses.
_KEPT = (
    "added_tokens_decoder",
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "truncation_side",
)


class Tokenizer:
    """A fast tokenizer and the files it came from.

    Attributes:
        max_length: default limit in tokens, special tokens included; None if unknown.
        pad_id: id for padding. Its embedding is never used: lengths mask it.
        fingerprint: sha256, hex, of everything that affects the ids.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        folder: epath.Path | None = None,
        config: dict | None = None,
        max_length: int | None = None,
    ):
        """Wraps `backend`, and switches off its truncation and padding.

        Args:
            backend: the tokenizer; owned by this object from now on.
            folder: where `save` finds the accompanying files.
            config: content of tokenizer_config.json.
            max_length: default limit in tokens; None takes the config's model_max_length.
        """
        self._config = config or {}
        self._folder = folder
        self._lock = threading.Lock()
        self.pad_id = _pad_id(backend, self._config)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        fields = Fields(self._config)
        self._side = fields.text("truncation_side", "right", choices=("right", "left"))
        self._specials = backend.num_special_tokens_to_add(False)
        stated = fields.limit("model_max_length")
        # Values not used here are written into exports, for readers that fail on other types.
        fields.text("padding_side", "right", choices=("right", "left"))
        fields.object("added_tokens_decoder", {})
        fields.flag("clean_up_tokenization_spaces")
        fields.check(f"{folder}/tokenizer_config.json")
        if max_length is None and stated is not None and stated < _LONGEST:
            max_length = stated
        self.max_length = max_length
        # Checked first: the library writes a vocabulary by counting up to its highest id.
        highest = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
        if highest > _HIGHEST:
            raise InputError(
                f"{folder}/tokenizer.json: token id {highest}, expected at most {_HIGHEST:,}"
            )
        content = json.dumps(json.loads(backend.to_str()), sort_keys=True)
        self.fingerprint = hashlib.sha256(
            f"{content}\n{self._side}\n{self.pad_id}".encode()
        ).hexdigest()

    @classmethod
    def from_folder(cls, folder: epath.PathLike, max_length: int | None = None) -> Tokenizer:
        """Reads the tokenizer of a model folder.

        Args:
            folder: with tokenizer.json, or with the files that `AutoTokenizer` converts.
            max_length: default limit in tokens; None takes tokenizer_config.json's.

        Raises:
            InputError: there is no tokenizer, or it cannot be read.
        """
        folder = epath.Path(folder)
        config = _read_config(folder)
        for name in (*_VOCABULARIES, *_TOKENS):
            inside(folder, name)  # no file that `save` copies leads out of the folder
        path = inside(folder, "tokenizer.json")
        if path.exists():
            try:
                backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # the Rust side raises bare Exception, or panics
                raise InputError(
                    f"{path}: not a tokenizer of the 'tokenizers' library ({error})"
                ) from None
        else:
            backend = _convert(folder)
        return cls(backend, folder=folder, config=config, max_length=max_length)

    @property
    def vocab_size(self) -> int:
        """Ids are below this number (added tokens included)."""
        return self._backend.get_vocab_size()

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
        """Token ids of each text, special tokens included.

        Args:
            texts: any number of strings; an empty one gives only the special tokens.
            max_length: limit in tokens; the text is cut, the special tokens are kept, as in
                `transformers` with truncation=True. None takes `self.max_length`.

        Returns:
            One int32 array per text, of length 1 to `max_length` (0 only for an empty text if the
            tokenizer adds no special tokens).

        Raises:
            InputError: `max_length` leaves no space for the special tokens, or is unknown.
        """
        max_length = self.max_length if max_length is None else max_length
        if max_length is None:
            raise InputError(
                f"{self._folder}: no max_length given, and tokenizer_config.json has none"
            )
        if max_length < max(1, self._specials):
            raise InputError(
                f"max_length={max_length}: the tokenizer adds {self._specials} special tokens to "
                f"each text, so it must be at least {max(1, self._specials)}"
            )
        ids = [
            np.asarray(encoding.ids, np.int32)
            for encoding in self._encodings(texts, max_length, _BLOCK)
        ]
        return ids

    def _encodings(
        self, texts: Sequence[Any], max_length: int, block: int, **truncation: Any
    ) -> Iterator[tokenizers.Encoding]:
        """The Rust library's encodings of texts, or of pairs; see the module's docstring."""
        backend = self._backend
        for start in range(0, len(texts), block):
            part = list(texts[start : start + block])
            try:
                with self._lock:
                    backend.enable_truncation(max_length, direction=self._side, **truncation)
                    try:
                        found = backend.encode_batch_fast(part)
                    finally:
                        backend.no_truncation()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise InputError(self._why(part, start, error)) from None
            yield from found

    def _why(self, part: list[Any], start: int, error: BaseException) -> str:
        """Why a block of texts cannot be encoded: an invalid text, or the tokenizer."""
        for row, item in enumerate(part):
            for text in item if isinstance(item, tuple) else (item,):
                if not isinstance(text, str):
                    return f"text {start + row} is {type(text).__name__}, expected str"
                if not encodable(text):
                    return (
                        f"text {start + row} holds half of a surrogate pair, which is not valid "
                        f"Unicode; remove it or read the file as UTF-8"
                    )
        return f"{self._folder}: the tokenizer fails on texts from {start} on ({error})"

    def save(
        self,
        folder: epath.PathLike,
        max_length: int | None = None,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        version_5: bool = False,
    ) -> None:
        """Writes the tokenizer for transformers (4 and 5) and text-embeddings-inference.

        tokenizer.json has truncation and padding off. tokenizer_config.json keeps the source's
        special tokens, sides and length, with a class that uses tokenizer.json unchanged.
        Vocabulary files are copied if the source had them.

        Args:
            folder: made if missing.
            max_length: `model_max_length` to write; None keeps the source's.
            inputs: the model's inputs, for readers that pass everything the tokenizer returns.
            version_5: use the class name that only transformers 5 knows, so that version 4 refuses
                the tokenizer of a model that it would compute wrongly.
        """
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = self._special_tokens()
        config = {key: self._config[key] for key in _KEPT if key in self._config} | special
        if max_length is not None:
            config["model_max_length"] = max_length
        kind = "TokenizersBackend" if version_5 else "PreTrainedTokenizerFast"
        config |= {"tokenizer_class": kind, "model_input_names": list(inputs)}
        sources = {name: inside(self._folder, name) for name in _VOCABULARIES if self._folder}
        vocabularies = {name: p.read_bytes() for name, p in sources.items() if p.exists()}
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True))
        for name, content in (
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", special),  # read by fastembed and by old transformers
        ):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n")
        for name, content in vocabularies.items():
            (folder / name).write_bytes(content)

    def _special_tokens(self) -> dict:
        """Special tokens by role."""
        found = {key: self._config[key] for key in _SPECIAL if self._config.get(key) is not None}
        # transformers 5 lists here what 4 calls additional; 4 fails on a list with this name.
        extra = self._config.get("extra_special_tokens") or ()
        extra = [*extra.values()] if isinstance(extra, dict) else [*extra]
        stated = [*found.get("additional_special_tokens", ())]
        if extra or stated:
            new = [token for token in extra if token not in stated]
            found["additional_special_tokens"] = stated + new
        if "pad_token" not in found:
            found["pad_token"] = self._backend.id_to_token(self.pad_id)
        # Those around each text also by name: sentence-transformers takes unnamed ones for the end
        # of a prompt.
        listed = found.get("additional_special_tokens", [])
        named = {_content(token) for token in [*found.values(), *listed]}
        around = [self._backend.id_to_token(i) for i in self._backend.encode("").ids]
        if new := [token for token in dict.fromkeys(around) if token not in named]:
            found["additional_special_tokens"] = [*listed, *new]
        return found


def _read_config(folder: epath.Path) -> dict[str, Any]:
    """tokenizer_config.json; special tokens it leaves out come from special_tokens_map.json."""
    config = read_object(folder, "tokenizer_config.json")
    found = read_object(folder, "special_tokens_map.json")
    for name in {*config, *found}:
        if not name.endswith("_token") or name.startswith("add_"):
            continue
        token = config.get(name)
        if token is None and found.get(name) is not None:
            token = config[name] = found[name]
        if token is not None and _content(token) is None:
            raise InputError(
                f"{folder}/tokenizer_config.json: {name}={shown(token)}, expected a string"
            )
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(name) or ()
        listed = tokens.values() if isinstance(tokens, dict) else tokens
        if isinstance(tokens, str) or not (
            isinstance(listed, Iterable) and all(_content(token) for token in listed)
        ):
            raise InputError(
                f"{folder}/tokenizer_config.json: {name}={shown(tokens)}, expected a list of tokens"
            )
    return config


def _content(token: Any) -> str | None:
    """The text of a special token from a config; None if it is not one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and encodable(content) else None


def _convert(folder: epath.Path) -> tokenizers.Tokenizer:
    """The fast tokenizer that `transformers` makes from a folder without tokenizer.json."""
    if not any(inside(folder, name).exists() for name in _VOCABULARIES):
        raise InputError(
            f"{folder}: no tokenizer.json, and no vocabulary file to make one from "
            f"({', '.join(_VOCABULARIES)})"
        )
    # tokenizer_config.json may hold paths of the machine it was written on, which transformers
    # would open: it gets only copies of the files that are read, and no path.
    with tempfile.TemporaryDirectory() as aside:
        for name in (*_VOCABULARIES, *_TOKENS, "config.json"):
            if (source := inside(folder, name)).exists():
                shutil.copyfile(source, os.path.join(aside, name))
        config = {k: v for k, v in _read_config(folder).items() if not k.endswith("_file")}
        with open(os.path.join(aside, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        try:
            import transformers  # slow to import, and rarely needed

            slow = transformers.AutoTokenizer.from_pretrained(
                aside, use_fast=True, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # ImportError, OSError, ValueError, and what parsers raise
            raise InputError(
                f"{folder}: no tokenizer.json, and transformers cannot convert its files "
                f"({str(error).replace(aside, str(folder))})"
            ) from None
    backend = getattr(slow, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{folder}: its tokenizer has no fast version; add a tokenizer.json")
    return backend


def _pad_id(backend: tokenizers.Tokenizer, config: dict) -> int:
    """The padding id: from the config, from the file's padding, by the usual names, or 0."""
    token = config.get("pad_token")
    if isinstance(token, dict):  # {"content": "[PAD]", "lstrip": …}
        token = token.get("content")
    stated = backend.token_to_id(token) if isinstance(token, str) else None
    if stated is not None:
        return stated
    if backend.padding:
        return backend.padding["pad_id"]
    usual = (backend.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((identifier for identifier in usual if identifier is not None), 0)

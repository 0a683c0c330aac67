"""An export as a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.errors import InputError
from nvret_jax.export.options import Export
from nvret_jax.export.sentence_transformers import export

_TAKES = {
    "repo_id": options.text("a name, such as 'owner/model'", longest=200),
    "private": options.flag(unset=True),
    "commit_message": options.text("a line", longest=200),
    "revision": options.text("a branch", longest=200, unset=True),
    "create_pr": options.flag(),
    "dtype": options.takes_of(Export)["dtype"],
}


def push(
    encoder: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str = "Add the model",
    revision: str | None = None,
    create_pr: bool = False,
    dtype: str = "float32",
) -> str:
    """Uploads an encoder, as `export` writes it; all processes call it, one uploads.

    Args:
        encoder: a `models.encoder.Encoder`.
        repo_id: 'owner/name'; created if it does not exist.
        private: of a new repository; None: the owner's default.
        commit_message: of the commit.
        revision: the branch; None: the main one.
        create_pr: open a pull request instead of a commit.
        dtype: of the stored weights.

    Returns:
        The URL of the commit; '' on processes other than the main one.

    Raises:
        InputError: the hub refuses it or cannot be reached; no token; no such name.
    """
    options.check_arguments("push_to_hub", locals(), _TAKES)
    import huggingface_hub

    with tempfile.TemporaryDirectory() as folder:
        made = export(encoder, os.path.join(folder, "model"), dtype=dtype)
        if not mesh_lib.is_main():
            return ""
        api = huggingface_hub.HfApi()
        try:
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            done = api.upload_folder(
                repo_id=name,
                folder_path=str(made),
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:  # errors of the network and the hub, of any library
            text = str(error).strip()
            first = text.splitlines()[0] if text else type(error).__name__
            raise InputError(
                f"push_to_hub: {repo_id}: {first}; log in with `hf auth login` or set HF_TOKEN, "
                "and check that you own the repository"
            ) from None
    return str(done)

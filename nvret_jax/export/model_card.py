"""The model card: README.md of an exported folder, front matter for the hub and text for people.

It says what the model is, how to call it, what it was trained on and how, and what it scored
before and after on which queries. Facts the caller does not know are left out, never guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from nvret_jax.evaluation.comparison import Scores
from nvret_jax.evaluation.retrieval import MEASURE_NAMES
from nvret_jax.export.architecture import BERT_TYPES


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What the card tells.

    Attributes:
        name: title of the model.
        base_model: what training started from, as the user named it. Goes into the front matter
            when it is a hub id.
        license: of the base model, as a hub identifier such as 'apache-2.0'; see `license_of`.
        language: hub language codes.
        data: one line for each training data set.
        recipe: what was chosen, {setting: value}.
        scores: the table.
    """

    name: str = "Text embedding model"
    base_model: str | None = None
    license: str | None = None
    language: Sequence[str] = ()
    data: Sequence[str] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: Sequence[Scores] = ()


def license_of(folder: epath.PathLike) -> str | None:
    """The licence that the model card in `folder` declares, or None where it declares none."""
    from huggingface_hub import metadata_load

    path = epath.Path(folder) / "README.md"
    if not path.exists() or "://" in str(path):
        return None
    try:
        declared = metadata_load(path) or {}
    except ValueError:  # front matter that is not YAML
        return None
    found = declared.get("license") if isinstance(declared, dict) else None
    return found if isinstance(found, str) else None


def render(card: ModelCard, encoder: Any, dtype: str) -> str:
    """The text of README.md.

    Args:
        card: what to tell.
        encoder: the exported encoder; its spec and width are described.
        dtype: of the stored weights.
    """
    spec = encoder.spec
    similarity = {"cosine": "cosine", "dot": "dot-product", "maxsim": "MaxSim"}.get(
        spec.similarity, spec.similarity
    )
    facts = {
        "Base model": card.base_model,
        "Embedding width": encoder.width,
        "Longest text": f"{spec.max_length} tokens",
        "Pooling": f"{spec.pooling}{', then L2 normalisation' if spec.normalize else ''}",
        "Similarity": similarity,
        "Query prompt": f"`{spec.query_prompt}`" if spec.query_prompt else "none",
        "Passage prompt": f"`{spec.passage_prompt}`" if spec.passage_prompt else "none",
        "Weights": dtype,
        "License of the base model": card.license,
    }
    parts = [
        _front_matter(card),
        f"# {_inline(card.name)}",
        f"Maps queries and passages to {'token vectors' if spec.late else 'vectors'} whose "
        f"{similarity} similarity ranks the passages for a query. {_origin(card)}",
        _table(("", ""), [(k, v) for k, v in facts.items() if v is not None]),
        "## Use\n\n" + _snippet(spec),
    ]
    if card.data:
        parts.append("## Training data\n\n" + "\n".join(f"- {_inline(line)}" for line in card.data))
    if card.recipe:
        rows = [(f"`{_inline(k)}`", v) for k, v in card.recipe.items()]
        parts.append("## Recipe\n\n" + _table(("setting", "value"), rows))
    if card.scores:
        parts.append("## Scores\n\n" + _scores(card.scores))
    return "\n\n".join(parts) + "\n"


def _origin(card: ModelCard) -> str:
    made = "Made with nvret_jax."
    if card.recipe:
        made = (
            "Trained with nvret_jax after [NV-Retriever](https://arxiv.org/abs/2407.15831): a "
            "teacher ranks passages for each training query, and a rule chooses hard negatives "
            "among them that are unlikely to be answers."
        )
    return made


def _front_matter(card: ModelCard) -> str:
    from huggingface_hub.utils import yaml_dump

    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "nvret_jax"],
    }
    if card.language:
        fields["language"] = list(card.language)
    if card.license:
        fields["license"] = card.license
    # The hub rejects anything but an id here; a folder name of this machine tells nobody anything.
    if card.base_model and re.fullmatch(r"[\w.-]+/[\w.-]+", card.base_model):
        if not epath.Path(card.base_model).exists():
            fields["base_model"] = card.base_model
    return f"---\n{yaml_dump(fields).strip()}\n---"


def _snippet(spec: Any) -> str:
    roles = ("query", "passage") if spec.query_prompt or spec.passage_prompt else (None, None)
    if spec.late is not None:
        return """```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("path/to/this/folder")
queries = model.encode_query(["how do I sort an array?"])
passages = model.encode_document(["sort(a) returns a sorted copy of an array."])
print(model.similarity(queries, passages))
```

PyLate loads the folder as `pylate.models.ColBERT("path/to/this/folder")`."""
    arguments = ["" if role is None else f', prompt_name="{role}"' for role in roles]
    snippet = f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode(["how do I sort an array?"]{arguments[0]})
passages = model.encode(["sort(a) returns a sorted copy of an array."]{arguments[1]})
print(model.similarity(queries, passages))
```"""
    if spec.pooling == "latent":
        return """```python
from nvret_jax.models.encoder import Encoder

encoder = Encoder.from_pretrained("path/to/this/folder")
queries = encoder.encode(["how do I sort an array?"], kind="query")
passages = encoder.encode(["sort(a) returns a sorted copy of an array."])
print(queries @ passages.T)
```"""
    if spec.architecture["model_type"] not in BERT_TYPES:
        return snippet
    return f"""{snippet}

text-embeddings-inference serves the folder as it is: \
`text-embeddings-router --model-id path/to/this/folder`\
{"; name the prompt in each request with `prompt_name`" if roles[0] else ""}."""


def _scores(scores: Sequence[Scores]) -> str:
    rows = []
    for entry in scores:
        for name, after in entry.after.items():
            before = None if entry.before is None else entry.before.get(name)
            interval = ""
            if name == "ndcg_cut_10" and entry.interval:
                interval = f"{entry.interval[0]:+.4f} to {entry.interval[1]:+.4f}"
            rows.append(
                (
                    _inline(entry.dataset),
                    f"{entry.queries:,}",
                    MEASURE_NAMES.get(name, name),
                    "" if before is None else f"{before:.4f}",
                    f"{after:.4f}",
                    "" if before is None else f"{after - before:+.4f}",
                    interval,
                )
            )
    measured = [f"{entry.measured[:1].upper()}{entry.measured[1:]}." for entry in scores]
    header = ("data set", "queries", "metric", "before", "after", "difference", "95 % interval")
    return (
        _table(header, rows)
        + "\n\n"
        + "".join(f"{line} " for line in dict.fromkeys(measured) if line != ".")
        + "Metrics are computed by trec_eval. The interval is a paired bootstrap over queries of "
        "the nDCG@10 difference."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_inline(str(c)) for c in line) + " |" for line in lines)


def _inline(text: str) -> str:
    """Text that stays inside its line, its table cell and out of HTML."""
    text = str(text).replace("\r", " ").replace("\n", " ")
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("<", "&lt;")

"""The model card: README.md of an exported folder, with front matter for the hub.

It describes the model, its use, its training data and recipe, and its scores before and after with
their queries. Unknown facts are left out, never guessed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.evaluation.comparison import TEACHER_PASSAGES, Scores
from nvret_jax.evaluation.retrieval import MEASURE_NAMES
from nvret_jax.export import readers


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """The content of the card.

    Attributes:
        name: title of the model.
        base_model: the initial model, as the user named it. It is part of the front matter if it is
            a hub id.
        license: of the base model, as a hub identifier such as 'apache-2.0'; see `declared`.
        license_name, license_link: for a license of 'other'.
        language: hub language codes.
        datasets: hub ids of training data sets.
        data: one line for each training data set.
        recipe: the settings, {setting: value}.
        scores: the table.
    """

    name: str = "Text embedding model"
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: Sequence[str] = ()
    datasets: Sequence[str] = ()
    data: Sequence[str] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: Sequence[Scores] = ()


def declared(folder: epath.PathLike) -> dict[str, Any]:
    """The declarations of the model card in `folder`, as arguments of `ModelCard`.

    license, license_name, license_link (str) and language (a list of str), each only if it exists
    with that type. A card that cannot be read declares nothing: it comes from elsewhere, and an
    export does not depend on it.
    """
    from huggingface_hub import metadata_load

    path = epath.Path(folder) / "README.md"
    if not path.exists() or "://" in str(path):
        return {}
    try:
        found = metadata_load(path) or {}
    except Exception as error:  # errors of YAML, of decoding, of nesting, of the file system
        first = (str(error).splitlines() or [""])[0]
        logging.warning(
            "%s: its front matter cannot be read (%s); the model card names no license", path, first
        )
        return {}
    if not isinstance(found, dict):
        return {}
    out = {
        key: found[key]
        for key in ("license", "license_name", "license_link")
        if isinstance(found.get(key), str)
    }
    language = found.get("language")
    language = [language] if isinstance(language, str) else language
    if isinstance(language, list) and language and all(isinstance(code, str) for code in language):
        out["language"] = language
    return out


def license_of(folder: epath.PathLike) -> str | None:
    """The licence that the model card in `folder` declares, or None if it declares none."""
    return declared(folder).get("license")


def render(card: ModelCard, encoder: Any, dtype: str) -> str:
    """The text of README.md.

    Args:
        card: its content. Absolute paths in it are cut to their last part, because a card is
            published.
        encoder: the exported encoder; its spec and width are described.
        dtype: of the stored weights.
    """
    card = _public(card)
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
        "Query prompt": _Code(spec.query_prompt) if spec.query_prompt else "none",
        "Passage prompt": _Code(spec.passage_prompt) if spec.passage_prompt else "none",
        "Weights": dtype,
        "License of the base model": card.license,
    }
    rows = [(name, _Markdown(text)) for name, text in readers.describe(spec).items()]
    parts = [
        _front_matter(card),
        f"# {_inline(card.name)}",
        f"Maps queries and passages to {'token vectors' if spec.late else 'vectors'} whose "
        f"{similarity} similarity ranks the passages for a query. {_origin(card)}",
        _table(("", ""), [(k, v) for k, v in facts.items() if v is not None]),
        "## Use\n\n" + _snippet(spec),
        "## Readers\n\n" + _table(("program", "reads this folder"), rows),
    ]
    if card.data:
        parts.append("## Training data\n\n" + "\n".join(f"- {_inline(line)}" for line in card.data))
    if card.recipe:
        parts.append("## Recipe\n\n" + _table(("setting", "value"), _recipe(card.recipe)))
    if card.scores:
        parts.append("## Scores\n\n" + _scores(card.scores))
    return "\n\n".join(parts) + "\n"


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(_Code(key), value) for key, value in recipe.items()]


# The folders of an absolute path that begins a word or follows a scheme ("beir:/…"), but not of a
# URL.
_FOLDERS = re.compile(
    r"""(^|[\s(\[,;:='"])(?:file://)?(?!//)(?:~|[A-Za-z]:)?[/\\](?=[^\s/\\])"""
    r"""(?:[^\s,;:()'"]*[/\\])?"""
)


def _without_folders(value: Any) -> Any:
    """A text without the folders of the absolute paths in it; otherwise unchanged."""
    if not isinstance(value, str):
        return value
    return _FOLDERS.sub(lambda found: found[1], value)


def _public(card: ModelCard) -> ModelCard:
    return dataclasses.replace(
        card,
        name=_without_folders(card.name),
        base_model=_without_folders(card.base_model),
        data=[_without_folders(line) for line in card.data],
        recipe={key: _without_folders(value) for key, value in card.recipe.items()},
        scores=[
            dataclasses.replace(entry, dataset=_without_folders(entry.dataset))
            for entry in card.scores
        ],
    )


def _origin(card: ModelCard) -> str:
    made = "Made with nvret_jax."
    if card.recipe:
        made = (
            "Trained with nvret_jax after [NV-Retriever](https://arxiv.org/abs/2407.15831): a "
            "teacher ranks passages for each training query, and a rule chooses hard negatives "
            "among them that are unlikely to be answers."
        )
    return made


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def _front_matter(card: ModelCard) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    # The hub rejects anything but an id here, and the name of a local folder is meaningless to
    # others.
    base = card.base_model
    if base and not (_HUB_ID.fullmatch(base) and not epath.Path(base).exists()):
        base = None
    results = [
        EvalResult(
            task_type="text-retrieval",
            dataset_type=re.sub(r"\W+", "-", entry.dataset).strip("-").lower() or "unknown",
            dataset_name=entry.dataset,
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for entry in card.scores
        for metric, value in entry.after.items()
    ]
    fields = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "nvret_jax"],
        language=list(card.language) or None,
        license=card.license,
        license_name=card.license_name,
        license_link=card.license_link,
        datasets=[name for name in card.datasets if _HUB_ID.fullmatch(name)] or None,
        base_model=base,
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{fields.to_yaml().strip()}\n---"


def loading(spec: Any, folder: str) -> dict[str, str]:
    """{program: Python code} that loads an exported model; only of programs that read it.

    Args:
        spec: of the model.
        folder: where it is.
    """
    place = json.dumps(folder, ensure_ascii=False)
    query, passage = "how do I sort an array?", "sort(a) returns a sorted copy of an array."
    out = {}
    if spec.late is not None:
        out["sentence-transformers"] = f"""from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder({place})
queries = model.encode_query(["{query}"])
passages = model.encode_document(["{passage}"])
print(model.similarity(queries, passages))"""
    elif spec.pooling != "latent":
        has_prompts = bool(spec.query_prompt or spec.passage_prompt)
        names = [f', prompt_name="{role}"' for role in ("query", "document")]
        of_query, of_passage = names if has_prompts else ("", "")
        out["sentence-transformers"] = f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer({place})
queries = model.encode(["{query}"]{of_query})
passages = model.encode(["{passage}"]{of_passage})
print(model.similarity(queries, passages))"""
    last = "" if spec.late is not None else "\nprint(queries @ passages.T)"
    out["nvret_jax"] = f"""from nvret_jax.models.encoder import Encoder

encoder = Encoder.from_pretrained({place})
queries = encoder.encode(["{query}"], kind="query")
passages = encoder.encode(["{passage}"]){last}"""
    return out


def _snippet(spec: Any) -> str:
    code = next(iter(loading(spec, "path/to/this/folder").values()))
    return f"```python\n{code}\n```"


def _scores(scores: Sequence[Scores]) -> str:
    rows = []
    has_bm25 = any(entry.bm25 for entry in scores)
    has_asymmetric = any(entry.asymmetric for entry in scores)
    for entry in scores:
        for name, after in entry.after.items():
            before = None if entry.before is None else entry.before.get(name)
            interval = ""
            if name == "ndcg_cut_10" and entry.interval:
                interval = f"{entry.interval[0]:+.4f} to {entry.interval[1]:+.4f}"
            bm25 = [f"{entry.bm25[name]:.4f}" if entry.bm25 else ""] if has_bm25 else []
            other = [f"{entry.asymmetric[name]:.4f}" if entry.asymmetric else ""]
            rows.append(
                (
                    entry.dataset,
                    f"{entry.queries:,}",
                    MEASURE_NAMES.get(name, name),
                    *bm25,
                    "" if before is None else f"{before:.4f}",
                    f"{after:.4f}",
                    "" if before is None else f"{after - before:+.4f}",
                    interval,
                    *(other if has_asymmetric else []),
                )
            )
    measured = [f"{entry.measured[:1].upper()}{entry.measured[1:]}." for entry in scores]
    beside = ["BM25"] if has_bm25 else []
    compared = ("before", "after", "difference", "95 % interval")
    last = [TEACHER_PASSAGES] if has_asymmetric else []
    header = ("data set", "queries", "metric", *beside, *compared, *last)
    return (
        _table(header, rows)
        + "\n\n"
        + "".join(f"{line} " for line in dict.fromkeys(measured) if line != ".")
        + "Metrics are computed by trec_eval. The interval is a paired bootstrap over queries of "
        "the nDCG@10 difference."
    )


class _Code(str):
    """Text for a code span."""


class _Markdown(str):
    """Text from this package, to be rendered as Markdown."""


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(content: Any) -> str:
    if isinstance(content, _Markdown):
        return content
    return _code(content) if isinstance(content, _Code) else _inline(content)


def _code(text: str) -> str:
    """A code span: its fence is longer than any run of backticks in the text."""
    text = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", text).replace("|", r"\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("<", "&lt;")


def _inline(text: Any) -> str:
    """Text that stays within its line and table cell, without Markdown or HTML."""
    text = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", str(text))
    text = re.sub(r"([\\`*\[\]|~])|(?<!\w)_|_(?!\w)|!(?=\[)", r"\\\g<0>", text)
    return text.replace("<", "&lt;")

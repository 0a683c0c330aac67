"""Models as published: what their makers state is what is read, and what is built.

`real_configs/` has the JSON files of each model; its SOURCE.json says where they are from, which
facts are confirmed and which are not. Models are built as shapes: there are no weights here.
"""

import json
import math
import pathlib
from typing import NamedTuple

import jax
import pytest
from flax import nnx

from nvret_jax.models import embedding_model
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.pretrained import sizes
from nvret_jax.models.pretrained.spec import read_spec
from nvret_jax.models.pretrained.weights import BERT_TABLE

ROOT = pathlib.Path(__file__).parent / "real_configs"


class Stated(NamedTuple):
    """What a maker states. `parameters`: of the text side, a BERT's pooler included."""

    pooling: str
    normalize: bool
    length: int
    width: int
    parameters: int
    prompts: tuple[str, str] = ("", "")
    prompt_in_pooling: str = "all"
    late: tuple[int, int] | None = None  # tokens of queries and of passages


E5 = ("query: ", "passage: ")
QWEN = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    "",
)
STATED = {
    # 7.85 B: Mistral-7B without its head (7,110,660,096), and latent attention.
    "nvidia/NV-Embed-v2": Stated(
        "latent", True, 32768, 4096, 7_851_016_192, prompt_in_pooling="last"
    ),
    "markaw/NV-Embed-v2": Stated(
        "latent", True, 4096, 4096, 7_851_016_192, prompt_in_pooling="last"
    ),
    "nvidia/llama-nemotron-embed-1b-v2": Stated("mean", True, 8192, 2048, 1_235_814_400, E5),
    # 149 M and 17 M.
    "lightonai/LateOn-Code": Stated("tokens", True, 2048, 128, 149_114_112, late=(256, 2048)),
    "lightonai/LateOn-Code-edge": Stated("tokens", True, 2048, 48, 16_953_600, late=(256, 2048)),
    # The text side of 4,703,464,448: Qwen2.5-3B.
    "nvidia/omni-embed-nemotron-3b": Stated("mean", True, 32768, 2048, 3_085_938_688),
    "dragonkue/multilingual-e5-small-ko": Stated("mean", True, 512, 384, 117_653_760, E5),
    "dragonkue/multilingual-e5-small-ko-v2": Stated("mean", True, 512, 384, 117_653_760, E5),
    "exp-models/dragonkue-KoEn-E5-Tiny": Stated("mean", True, 512, 384, 37_517_184, E5),
    "nvidia/NV-Retriever-v1": Stated(
        "mean", True, 32768, 4096, 7_110_660_096, prompt_in_pooling="none"
    ),
    "intfloat/e5-large-v2": Stated("mean", True, 512, 1024, 335_141_888),
    "intfloat/e5-large-unsupervised": Stated("mean", True, 512, 1024, 335_141_888),
    "intfloat/multilingual-e5-small": Stated("mean", True, 512, 384, 117_653_760),
    "intfloat/multilingual-e5-base": Stated("mean", True, 512, 768, 278_043_648),
    "intfloat/multilingual-e5-large": Stated("mean", True, 512, 1024, 559_890_432),
    "BAAI/bge-base-en-v1.5": Stated("cls", True, 512, 768, 109_482_240),
    "answerdotai/ModernBERT-base": Stated("mean", False, 8192, 768, 149_014_272),
    "Qwen/Qwen3-Embedding-0.6B": Stated("lasttoken", True, 32768, 1024, 595_776_512, QWEN),
    "Qwen/Qwen3-Embedding-4B": Stated("lasttoken", True, 40960, 2560, 4_021_774_336, QWEN),
    "Qwen/Qwen3-Embedding-8B": Stated("lasttoken", True, 40960, 4096, 7_567_295_488, QWEN),
    "mistralai/Mistral-7B-v0.1": Stated("mean", False, 4096, 4096, 7_110_660_096),
    "intfloat/e5-mistral-7b-instruct": Stated("lasttoken", True, 4096, 4096, 7_110_660_096),
    "sentence-transformers/all-MiniLM-L6-v2": Stated("mean", True, 256, 384, 22_713_216),
}


def folder(name: str) -> pathlib.Path:
    return ROOT / name.replace("/", "--")


def parameters(spec) -> int:
    """Weights of the abstract model; HF's BERT has a pooler beside them."""
    model = nnx.eval_shape(lambda: embedding_model.build(spec, Options()))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model)))
    width = spec.backbone.hidden_size
    return count + (width * width + width) * (spec.family.table is BERT_TABLE)


def test_every_folder_is_stated_and_says_where_it_is_from():
    found = {path.name.replace("--", "/") for path in ROOT.iterdir()}
    assert found == {*STATED}
    for name in found:
        source = json.loads((folder(name) / "SOURCE.json").read_text())
        assert source["model"] == name
        assert source["revision"]
        assert source["from"]
        assert source["confirmed"]
        assert isinstance(source["not_confirmed"], list)


@pytest.mark.parametrize("name", STATED)
def test_a_published_model_is_read_and_built_as_its_maker_states(name):
    stated = STATED[name]
    spec, _ = read_spec(folder(name))
    assert (spec.pooling, spec.normalize) == (stated.pooling, stated.normalize)
    assert (spec.max_length, spec.width) == (stated.length, stated.width)
    assert (spec.query_prompt, spec.passage_prompt) == stated.prompts
    assert spec.prompt_in_pooling == stated.prompt_in_pooling
    if stated.late is not None:
        lengths = [spec.late.max_length(k, spec.max_length) for k in ("query", "passage")]
        assert tuple(lengths) == stated.late
    assert parameters(spec) == stated.parameters


@pytest.mark.parametrize("name", sizes.KNOWN)
def test_the_table_of_known_sizes_says_what_the_folders_say(name, tmp_path):
    real, _ = read_spec(folder(name))
    table, _ = read_spec(sizes.write(name, tmp_path))
    assert table.backbone == real.backbone
    assert (table.pooling, table.normalize) == (real.pooling, real.normalize)
    assert (table.width, table.max_length) == (real.width, real.max_length)


def test_sizes_that_nv_embed_leaves_out_are_those_of_its_class():
    spec, _ = read_spec(folder("nvidia/NV-Embed-v2"))
    assert spec.architecture["latent_attention_config"] == {"model_type": "latent_attention"}
    model = nnx.eval_shape(lambda: embedding_model.build(spec, Options()))
    assert model.latent.latents.shape == (512, 4096)
    assert model.latent.query_kernel.shape == (4096, 8, 4096)


@pytest.mark.parametrize(("document_length", "stored"), [(2048, 31), (180, 31), (300, 299)])
def test_what_pylate_tokenised_last_is_no_limit(tmp_path, document_length, stored):
    for path in folder("lightonai/LateOn-Code").rglob("*.json"):
        target = tmp_path / path.relative_to(folder("lightonai/LateOn-Code"))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stored}))
    shared = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    shared["document_length"] = document_length
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(shared))
    spec, _ = read_spec(tmp_path)
    assert spec.late.max_length("passage", spec.max_length) == document_length
    assert spec.late.max_length("query", spec.max_length) == 256
    assert read_spec(tmp_path, max_length=100)[0].late.max_length("passage", 100) == 100

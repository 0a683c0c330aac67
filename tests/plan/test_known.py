"""The table of well-known models, against the sizes that their authors publish."""

import jax
import jax.numpy as jnp
import pytest

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import batched
from nvret_jax.models.pretrained import sizes
from nvret_jax.models.pretrained.spec import read_spec
from nvret_jax.plan import flops, models

# Numbers of weights as the hub shows them, less what an encoder has no use for: BERT's pooler, a
# decoder's head where it is not tied to the token table.
WEIGHTS = {
    "mistralai/Mistral-7B-v0.1": 7_241_732_096 - 32000 * 4096,
    "intfloat/e5-mistral-7b-instruct": 7_110_660_096,
    "nvidia/NV-Retriever-v1": 7_110_660_096,
    "nvidia/NV-Embed-v2": 7_851_016_192,
    "nvidia/llama-nemotron-embed-1b-v2": 1_235_814_400,
    "intfloat/e5-large-v2": 335_141_888 - 1024 * 1025,
    "intfloat/e5-large-unsupervised": 335_141_888 - 1024 * 1025,
    "intfloat/multilingual-e5-small": 117_653_760 - 384 * 385,
    "intfloat/multilingual-e5-base": 278_043_648 - 768 * 769,
    "intfloat/multilingual-e5-large": 559_890_432 - 1024 * 1025,
    "BAAI/bge-base-en-v1.5": 109_482_240 - 768 * 769,
    "answerdotai/ModernBERT-base": 149_014_272,
    "Qwen/Qwen3-Embedding-0.6B": 595_776_512,
    "Qwen/Qwen3-Embedding-4B": 4_021_774_336,
    "Qwen/Qwen3-Embedding-8B": 7_567_295_488,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216 - 384 * 385,
}
WIDTHS = {"nvidia/NV-Embed-v2": 4096, "Qwen/Qwen3-Embedding-4B": 2560}


def sketched(name, tmp_path, dtype="bfloat16"):
    spec, _ = read_spec(sizes.write(name, tmp_path), dtype=dtype)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    return models.sketch(spec, mesh, name=name), mesh


@pytest.mark.parametrize("name", sizes.KNOWN)
def test_a_known_model_has_as_many_weights_as_its_authors_say(name, tmp_path):
    sketch, _ = sketched(name, tmp_path)
    assert sketch.shape.weights == WEIGHTS[name]
    assert sketch.spec.width == WIDTHS.get(name, sketch.spec.width)
    assert sketch.spec.max_length == sizes.KNOWN[name].max_length


@pytest.mark.parametrize(
    "name",
    [
        "intfloat/multilingual-e5-small",
        "answerdotai/ModernBERT-base",
        "nvidia/llama-nemotron-embed-1b-v2",
        "nvidia/NV-Embed-v2",
    ],
)
def test_operations_counted_by_hand_are_those_of_the_traced_program(name, tmp_path):
    sketch, mesh = sketched(name, tmp_path)
    texts, tokens = 3, 48
    with jax.set_mesh(mesh):
        traced = batched.apply.trace(
            sketch.graphdef,
            sketch.state,
            models.placed(jax.ShapeDtypeStruct((texts, tokens), jnp.int32), mesh, "batch", None),
            models.placed(jax.ShapeDtypeStruct((texts,), jnp.int32), mesh, "batch"),
            None,
        )
    done = flops.done(traced.jaxpr, 1)
    # The keys and values of NV-Embed's latents are made anew in each step, whatever its texts.
    latents = 2 * 512 * 4096 * 2 * 8 * 4096 if name.endswith("NV-Embed-v2") else 0
    assert done.loops == 0
    assert done.float32 == 0
    assert done.fast == sketch.shape.forward(texts, tokens) + latents


def test_float32_is_counted_apart(tmp_path):
    sketch, mesh = sketched("intfloat/multilingual-e5-small", tmp_path, dtype="float32")
    with jax.set_mesh(mesh):
        traced = batched.apply.trace(
            sketch.graphdef,
            sketch.state,
            models.placed(jax.ShapeDtypeStruct((2, 16), jnp.int32), mesh, "batch", None),
            models.placed(jax.ShapeDtypeStruct((2,), jnp.int32), mesh, "batch"),
            None,
        )
    done = flops.done(traced.jaxpr, 1)
    assert done.fast == 0
    assert done.float32 == sketch.shape.forward(2, 16)


def test_names_are_found_in_any_case_and_others_refused(tmp_path):
    sizes.write("baai/BGE-base-en-v1.5", tmp_path)
    assert read_spec(tmp_path)[0].pooling == "cls"
    with pytest.raises(InputError, match="nobody/nothing: the table of known architectures has"):
        sizes.write("nobody/nothing", tmp_path)

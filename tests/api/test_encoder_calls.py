"""What users of sentence-transformers type: the same result, or one line that says what to do."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tiny_models
import tiny_project

import nvret_jax as nv
from nvret_jax.models.batched import Batched

TEXTS = ["the wing", "a body of flow", "heat", "shock layer at the plate speed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    tiny_project.make_model(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return nv.Encoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompted(folder):
    return nv.Encoder.from_pretrained(folder, query_prompt="the heat ", passage_prompt="a cell ")


def test_one_text_gives_one_vector(encoder):
    many = encoder.encode(TEXTS)
    assert encoder.encode(TEXTS[0]).shape == (32,)
    np.testing.assert_allclose(encoder.encode(TEXTS[0]), many[0], atol=2e-6)
    assert encoder.encode([]).shape == (0, 32)


def test_prompts(prompted, encoder):
    def plain(prompt):
        return encoder.encode([prompt + text for text in TEXTS])

    def same(one, other):
        np.testing.assert_allclose(one, other, atol=2e-6)

    same(prompted.encode(TEXTS), plain("a cell "))
    same(prompted.encode_document(TEXTS), plain("a cell "))
    same(prompted.encode_query(TEXTS), plain("the heat "))
    same(prompted.encode(TEXTS, prompt_name="query"), plain("the heat "))
    same(prompted.encode(TEXTS, "document"), plain("a cell "))
    same(prompted.encode(TEXTS, prompt="of "), plain("of "))
    same(prompted.encode_query(TEXTS, prompt=""), plain(""))
    same(prompted.encode_query(TEXTS[1]), plain("the heat ")[1])
    assert prompted.prompts == {"query": "the heat ", "document": "a cell "}


def test_what_changes_no_number(encoder):
    wanted = encoder.encode(TEXTS)
    for how in (
        {"batch_size": 1},
        {"batch_size": np.int64(2), "max_length": np.int32(16)},
        {"token_budget": np.int64(64)},
        {"batch_size": 64},
        {"show_progress_bar": True},
        {"show_progress_bar": False, "convert_to_numpy": True, "device": None},
        {"convert_to_tensor": False, "output_value": "sentence_embedding", "pool": None},
    ):
        np.testing.assert_allclose(encoder.encode(TEXTS, **how), wanted, atol=1e-5)


def test_a_batch_has_no_more_texts_than_asked_for(encoder, monkeypatch):
    seen = []
    applied = Batched._applied

    def spy(self, batch, skip):
        seen.append(batch.tokens_bt.shape)
        return applied(self, batch, skip)

    monkeypatch.setattr(Batched, "_applied", spy)
    encoder.encode([" ".join(["wing"] * 38)] * 10, batch_size=2)
    assert {rows for rows, _ in seen} == {2}


def test_truncated_and_normalised(encoder):
    whole = encoder.encode(TEXTS)
    short = encoder.encode(TEXTS, truncate_dim=8)
    np.testing.assert_array_equal(short, whole[:, :8])
    unit = encoder.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        unit, short / np.linalg.norm(short, axis=1, keepdims=True), atol=1e-6
    )


def test_similarity(encoder):
    a, b = encoder.encode(TEXTS[:3]), encoder.encode(TEXTS)
    cosines = encoder.similarity(a, b)
    assert cosines.shape == (3, 4)
    np.testing.assert_allclose(np.diagonal(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(a, b[1:]), cosines.diagonal(1), atol=1e-6
    )
    assert encoder.similarity(a[0], b).shape == (1, 4)
    assert encoder.similarity_fn_name == "cosine"


def test_saved_and_read_again(encoder, tmp_path):
    assert encoder.save_pretrained(tmp_path / "x") == tmp_path / "x"
    again = nv.Encoder.from_pretrained(tmp_path / "x")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)


def test_pushed_to_the_hub(encoder, monkeypatch):
    import huggingface_hub

    seen = {}

    class Repository:
        repo_id = "me/m"

    def upload_folder(self, **how):
        seen.update(how, files=sorted(p.name for p in pathlib.Path(how["folder_path"]).iterdir()))
        return "https://huggingface.co/me/m/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *a, **k: Repository())
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert encoder.push_to_hub("m", private=True).endswith("/commit/1")
    assert seen["repo_id"] == "me/m"
    assert {"model.safetensors", "modules.json", "README.md"} <= set(seen["files"])

    def refused(self, *a, **k):
        raise OSError("401 Client Error\n\nmany more lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(nv.InputError, match=r"^push_to_hub: m: 401 Client Error; log in with"):
        encoder.push_to_hub("m")


def test_a_short_name_is_found(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    root = tmp_path / "models--sentence-transformers--tiny-wing-v2"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert nv.Encoder.from_pretrained("tiny-wing-v2").width == 32
    with pytest.raises(nv.InputError, match="did you mean 'sentence-transformers/tiny-wing-v2'"):
        nv.Encoder.from_pretrained("tiny-wing-v1")


ENCODE = [
    ({"convert_to_tensor": True}, "convert_to_tensor=True: results are numpy arrays; torch.from_n"),
    ({"convert_to_numpy": False}, "convert_to_numpy=False: results are numpy arrays"),
    ({"output_value": "token_embeddings"}, "one vector per text is returned; encode_tokens"),
    ({"output_value": None}, "output_value=None: one vector per text"),
    ({"precision": "int8"}, "precision='int8': embeddings are float32; round them with numpy"),
    ({"device": "cuda"}, "device='cuda': the mesh decides"),
    ({"device": ["cuda:0", "cuda:1"]}, "the mesh decides"),
    ({"pool": [0]}, "one call uses all devices of the mesh"),
    ({"chunk_size": 100}, "chunk_size=100: texts stream"),
    ({"batch_size": 0}, "batch_size=0: expected a whole number from 1"),
    ({"batch_size": "32"}, "batch_size='32'"),
    ({"batch_size": 2.5}, "batch_size=2.5"),
    ({"show_progress_bar": "yes"}, "show_progress_bar='yes'"),
    ({"prompt_name": "passages"}, "prompt_name='passages': expected one of query, passage"),
    ({"prompt_name": 3}, "prompt_name=3"),
    ({"prompt": 3}, "prompt=3"),
    ({"prompt": ["a", "b"]}, "prompt=['a', 'b']"),
    ({"truncate_dim": 0}, "truncate_dim=0"),
    ({"truncate_dim": 33}, "truncate_dim=33: the embedding has 32 components"),
    ({"truncate_dim": "8"}, "truncate_dim='8'"),
    ({"normalize_embeddings": 1}, "normalize_embeddings=1"),
    ({"batchsize": 32}, "encode: no argument 'batchsize'; did you mean 'batch_size'?"),
    ({"task": "retrieval"}, "no argument 'task'; give prompt="),
    ({"num_workers": 2}, "no argument 'num_workers'; texts stream"),
    ({"kind": "document"}, "kind='document'"),
    ({"normalise_embeddings": True}, "did you mean 'normalize_embeddings'?"),
    ({"max_seq_length": 8}, "no argument 'max_seq_length'; did you mean 'max_length'?"),
]
LOAD = [
    ({"mesh": 3}, "mesh=3: expected a mesh, such as make_mesh()"),
    ({"device": "cuda"}, "no argument 'device'; give mesh=make_mesh(…)"),
    ({"trust_remote_code": True}, "code of a model is never run"),
    ({"cache_folder": "x"}, "HF_HUB_CACHE"),
    ({"token": "x"}, "HF_TOKEN"),
    ({"revision": "main"}, "'owner/model@revision'"),
    ({"prompts": {"query": "q: "}}, "give query_prompt= and passage_prompt="),
    ({"truncate_dim": 8}, "encode(texts, truncate_dim=…)"),
    ({"local_files_only": True}, "nothing is downloaded unless download=True"),
    ({"backend": "onnx"}, "JAX computes"),
    ({"model_kwargs": {}}, "give dtype="),
    ({"dtype": "bf16"}, "dtype='bf16': expected one of float32, bfloat16, float16"),
    ({"dtype": np.float32}, "dtype="),
    ({"max_lenght": 8}, "did you mean 'max_length'?"),
]
OTHERS = [
    (lambda e: nv.Encoder("a/model"), "read a model with Encoder.from_pretrained('a/model')"),
    (lambda e: nv.Encoder.from_pretrained(3), "name_or_path=3"),
    (lambda e: nv.Encoder.from_pretrained(None), "name_or_path=None"),
    (lambda e: nv.Encoder.from_pretrained("all-MiniLM-L6"), "did you mean 'sentence-transformers/"),
    (lambda e: nv.Encoder.from_pretrained("a", "b"), "2 arguments by position, expected at most 1"),
    (lambda e: e.encode(), "encode: missing a required argument: 'texts'"),
    (lambda e: e.encode(sentences=TEXTS), "no argument 'sentences'; give the texts first"),
    (lambda e: e.encode_query(TEXTS, batch_size="8"), "batch_size='8'"),
    (lambda e: e.encode_document(TEXTS, bach_size=8), "did you mean 'batch_size'?"),
    (lambda e: e.encode(3), "expected a sequence of texts, got 3 (int)"),
    (lambda e: e.encode(b"bytes"), "got one bytes; wrap it in a list"),
    (lambda e: e.encode([["a", "b"]]), "text 0 is ['a', 'b'] (list); expected str"),
    (lambda e: e.encode([None]), "text 0 is None (NoneType)"),
    (lambda e: e.similarity([[1.0, 2.0]], [[1.0]]), "similarity: embeddings of shapes (1, 2) and"),
    (lambda e: e.similarity("a", "b"), "embeddings1: expected a matrix of floats"),
    (lambda e: e.similarity(np.ones((2, 2))), "missing a required argument: 'embeddings2'"),
    (lambda e: e.similarity_pairwise(np.ones((2, 2)), np.ones((3, 2))), "2 vectors and 3"),
    (lambda e: e.save_pretrained("/nowhere/x", safe_serialization=True), "always safetensors"),
    (lambda e: e.save_pretrained(3), "folder=3"),
    (lambda e: e.push_to_hub(3), "push_to_hub: repo_id=3"),
    (lambda e: e.push_to_hub("a", token="x"), "no argument 'token'; set the environment variable"),
    (
        lambda e: nv.search(np.ones((1, 2)), np.ones((3, 2)), top_k=2),
        "no argument 'top_k'; give k=",
    ),
    (lambda e: nv.search(np.ones((1, 2))), "missing a required argument: 'passages_nd'"),
    (lambda e: nv.evaluate(e), "missing a required argument: 'dataset'"),
    (lambda e: nv.evaluate(e, "pydocs:", batch_size=8), "evaluate: no argument 'batch_size'"),
    (lambda e: nv.evaluate(e, nv.load_dataset([("a", "b")], split="train")), "no split 'test'"),
    (lambda e: nv.export(e), "missing a required argument: 'folder'"),
    (lambda e: nv.export(e, path="x"), "no argument 'path'; give the folder second"),
    (lambda e: nv.load_dataset(), "load_dataset: missing a required argument: 'spec'"),
    (lambda e: nv.load_dataset("pairs:x.csv", colour="red"), "no option 'colour'"),
    (lambda e: nv.load_dataset("pydocs:", "train"), "2 arguments by position, expected at most 1"),
    (lambda e: nv.run("configs/none.py", "/nowhere/w"), "configs/none.py: no such file"),
    (lambda e: nv.run(nv.config.base()), "run: missing a required argument: 'workdir'"),
    (lambda e: nv.run(nv.config.base(), "w", stage="mine"), "did you mean 'stages'?"),
    (lambda e: nv.run(3, "w"), "config=3: expected a config"),
    (lambda e: nv.Loss(temperature=-1), "temperature=-1"),
    (lambda e: nv.Mining(num_negatives=0), "num_negatives=0"),
    (lambda e: nv.mine(["a"], relative_margin=0.05), "relative_margin=r is percent=1 - r"),
    (lambda e: nv.mine(["a"], absolute_margin=0.05), "rule='margin_pos', margin=m"),
    (lambda e: nv.mine(["a"], range_min=10), "rule='shifted+perc_pos', shift=n"),
    (lambda e: nv.mine(["a"], model=e), "give teacher=encoder"),
    (lambda e: nv.mine(["a"], use_faiss=True), "give backend='faiss'"),
    (lambda e: nv.mine(["a"], num_negative=3), "did you mean 'num_negatives'?"),
    (lambda e: nv.mine(["a"], ["b"], teacher=e), "argument 'positives' is missing"),
    (lambda e: nv.mine("beir:x", teacher=e), "give the data set, load_dataset('beir:x')"),
]


def one_line(call) -> str:
    with pytest.raises(nv.InputError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


@pytest.mark.parametrize(("how", "words"), ENCODE, ids=lambda value: str(value)[:40])
def test_encode_says_what_to_do(encoder, how, words):
    assert words in one_line(lambda: encoder.encode(TEXTS, **how))


@pytest.mark.parametrize(("how", "words"), LOAD, ids=lambda value: str(value)[:40])
def test_from_pretrained_says_what_to_do(folder, how, words):
    assert words in one_line(lambda: nv.Encoder.from_pretrained(folder, **how))


@pytest.mark.parametrize(("call", "words"), OTHERS, ids=[words[:40] for _, words in OTHERS])
def test_the_others_say_what_to_do(encoder, call, words):
    assert words in one_line(lambda: call(encoder))


def test_there_are_as_many_as_were_collected():
    from test_bad_calls import REFUSED_BY_MINE, REFUSED_BY_SEARCH

    assert len(ENCODE) + len(LOAD) + len(OTHERS) + len(REFUSED_BY_MINE + REFUSED_BY_SEARCH) > 112


SAME = [
    lambda e: e.encode(TEXTS),
    lambda e: e.encode(TEXTS[0]),
    lambda e: e.encode(tuple(TEXTS)),
    lambda e: e.encode(np.array(TEXTS)),
    lambda e: e.encode(TEXTS, batch_size=1),
    lambda e: e.encode(TEXTS, batch_size=3, show_progress_bar=True),
    lambda e: e.encode(TEXTS, show_progress_bar=False),
    lambda e: e.encode(TEXTS, normalize_embeddings=True),
    lambda e: e.encode(TEXTS, truncate_dim=8),
    lambda e: e.encode(TEXTS, truncate_dim=8, normalize_embeddings=True),
    lambda e: e.encode(TEXTS, prompt="the heat "),
    lambda e: e.encode(TEXTS, "query"),
    lambda e: e.encode(TEXTS, prompt_name="document"),
    lambda e: e.encode(TEXTS[2], prompt_name="query", normalize_embeddings=True),
    lambda e: e.encode(TEXTS, prompt=""),
    lambda e: e.encode_query(TEXTS),
    lambda e: e.encode_query(TEXTS[0]),
    lambda e: e.encode_document(TEXTS),
    lambda e: e.encode_document(TEXTS, prompt="of "),
    lambda e: e.encode(TEXTS, convert_to_numpy=True, convert_to_tensor=False),
    lambda e: e.encode(TEXTS, precision="float32", device=None),
    lambda e: e.encode([TEXTS[0], TEXTS[0]]),
    lambda e: e.encode([""]),
    lambda e: e.similarity(e.encode_query(TEXTS), e.encode_document(TEXTS[:2])),
    lambda e: e.similarity_pairwise(e.encode_query(TEXTS), e.encode_document(TEXTS)),
    lambda e: e.similarity(e.encode(TEXTS, prompt="")[0], e.encode(TEXTS, prompt="")),
    lambda e: e.get_sentence_embedding_dimension(),
    lambda e: e.max_seq_length,
    lambda e: e.similarity_fn_name,
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with prompts, read by both libraries."""
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("both")
    tiny_project.make_model(folder / "m")
    source = nv.Encoder.from_pretrained(
        folder / "m", query_prompt="the heat ", passage_prompt="a cell "
    )
    source.save_pretrained(folder / "x")
    theirs = library.SentenceTransformer(str(folder / "x"), device="cpu")
    # What ours does without being asked: passages get their prompt.
    theirs.default_prompt_name = "document"
    return nv.Encoder.from_pretrained(folder / "x"), theirs


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(SAME)))
def test_the_same_call_gives_the_same_numbers(both, number):
    ours, theirs = (SAME[number](encoder) for encoder in both)
    if hasattr(theirs, "numpy"):
        theirs = theirs.numpy()
    if isinstance(theirs, np.ndarray):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5)
    else:
        assert ours == theirs


def test_the_words_of_the_tiny_model_are_known(encoder):
    assert set(" ".join(TEXTS).split()) <= set(tiny_models.WORDS)

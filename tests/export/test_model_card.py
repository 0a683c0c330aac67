"""The model card of an export: what the hub reads of it, and what it must not publish."""

import json

import pytest
import tiny_backbones
import tiny_models

from nvret_jax.evaluation.comparison import Scores
from nvret_jax.export import readers
from nvret_jax.export.model_card import ModelCard, declared, license_of
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder, LoraConfig

SCORES = Scores("medquad test", 1406, {"ndcg_cut_10": 0.5}, {"ndcg_cut_10": 0.5321, "map": 0.39})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("card") / "source")


def card_of(source, out, card=None, **kwargs):
    """(front matter, text) of an export's card."""
    from huggingface_hub import metadata_load

    export(Encoder.from_pretrained(str(source), **kwargs), out, card=card)
    return metadata_load(out / "README.md"), (out / "README.md").read_text()


def test_the_hub_finds_scores_licence_language_and_data_sets(source, tmp_path):
    from huggingface_hub import ModelCard as HubCard

    card = ModelCard(
        name="A retriever: tuned",
        base_model="owner/base",
        license="other",
        license_name="our-terms",
        license_link="LICENSE.md",
        language=["en", "de"],
        datasets=["owner/data", "/home/me/data"],
        scores=[SCORES],
    )
    front, _ = card_of(source, tmp_path / "out", card)
    assert front["language"] == ["en", "de"]
    assert front["datasets"] == ["owner/data"]
    assert (front["license"], front["license_name"]) == ("other", "our-terms")
    assert front["base_model"] == "owner/base"
    (entry,) = front["model-index"]
    assert entry["name"] == "A retriever: tuned"
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "medquad test", "type": "medquad-test"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        "ndcg_cut_10": 0.5321,
        "map": 0.39,
    }
    read = HubCard.load(tmp_path / "out" / "README.md").data
    assert [r.metric_type for r in read.eval_results] == ["ndcg_cut_10", "map"]


def test_no_path_of_this_machine_is_published(source, tmp_path):
    card = ModelCard(
        name="/home/me/secret/run",
        base_model="/home/me/secret/base",
        data=["scifact (beir:/home/me/secret/scifact)", "own (csv:~/secret/a.csv:b)"],
        recipe={
            "Student started from": "/home/me/secret/base",
            "Teacher": "run:/srv/secret/bm25.trec, owner/model",
            "Mining rule": "score ≤ 0.95 · anchor / 1 and/or none",
            "Seed": 3,
        },
        scores=[Scores("beir:/home/me/secret/scifact", 3, None, {"map": 0.1})],
    )
    front, text = card_of(source, tmp_path / "out", card)
    for private in ("/home", "secret", "/srv", str(source)):
        assert private not in text
    assert "base_model" not in front
    assert "- scifact (beir:scifact)" in text
    assert "- own (csv:a.csv:b)" in text
    assert "run:bm25.trec, owner/model" in text
    assert "0.95 · anchor / 1 and/or none" in text


HOSTILE = "![x](https://tracker.example/p.png) `a` ``b`` <script> | [y](z)\n# **head** _em_ a_b"


def test_foreign_text_is_shown_and_not_rendered(source, tmp_path):
    card = ModelCard(name=HOSTILE, data=[HOSTILE], recipe={HOSTILE: HOSTILE})
    _, text = card_of(
        source, tmp_path / "out", card, query_prompt=HOSTILE, passage_prompt="plain: "
    )
    text = text[text.index("\n# ") :]  # behind the front matter
    assert "<script" not in text
    outside = []
    for line in text.splitlines():
        assert not line.startswith("# **")
        while line:  # cut out code spans, as CommonMark finds them
            before, mark, rest = line.partition("`")
            if before.endswith("\\"):
                outside.append(before)
                line = rest
                continue
            fence = mark
            while rest.startswith("`"):
                fence, rest = fence + "`", rest[1:]
            outside.append(before)
            line = rest.partition(fence)[2] if fence else ""
    plain = "\n".join(outside)
    assert "![" not in plain.replace("\\!\\[", "")
    assert "**head**" not in plain
    assert "a_b" in plain  # no escape where none is needed
    assert "`plain: `" in text


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: [\n---\n",
        b"---\nlicense: !!python/object/apply:os.system [ls]\n---\n",
        b"---\nlicense: \xff\n---\n",
        b"---\n" + b"[" * 5000 + b"\n---\n",
        b"---\n- a list\n---\n",
        b"---\nlicense: {a: 1}\nlanguage: [1]\n---\n",
    ],
)
def test_a_card_of_the_base_model_that_cannot_be_read_declares_nothing(content, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    assert declared(tmp_path) == {}
    assert license_of(tmp_path) is None


def test_what_the_base_models_card_declares(tmp_path):
    assert declared(tmp_path) == {}
    text = "---\nlicense: other\nlicense_name: x\nlanguage: en\nlicense_link: 3\n---\n"
    (tmp_path / "README.md").write_text(text)
    expected = {"license": "other", "license_name": "x", "language": ["en"]}
    assert declared(tmp_path) == expected


# What the card says of three programs; None: anything.
NO = "no: "
CASES = {
    "bert": ("from 2.7", "4.57 and 5", "yes"),
    "nv-retriever": ("from 5.3 with transformers 5", "from 5.0", NO),
    "llama-nemotron-embed": ("from 5.3 with transformers 5", "from 5.0", NO),
    "e5-mistral": ("from 2.7", "4.57 and 5", "only on NVIDIA GPUs"),
    "llama": ("from 2.7", "4.57 and 5", NO),  # its biases
    "qwen3-embedding": ("from 2.7", "4.57 and 5", "yes"),
    "modernbert": ("from 2.7", "4.57 and 5", "yes"),
    "lateon-code": ("from 6.0, as `MultiVectorEncoder` with transformers 5", "from 5.0", NO),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_card_says_who_reads_it(name, tmp_path):
    if name == "bert":
        folder = tiny_models.write(tmp_path / "source")
    else:
        folder = tiny_backbones.write(tmp_path / "source", name)
    encoder = Encoder.from_pretrained(str(folder))
    out = export(encoder, tmp_path / "out")
    rows = readers.describe(encoder.spec)
    text = (out / "README.md").read_text()
    for program, sentence in rows.items():
        assert f"| {program} | {sentence} |" in text
    programs = ("sentence-transformers", "transformers", "text-embeddings-inference")
    for program, start in zip(programs, CASES[name], strict=True):
        assert rows[program].startswith(start), (program, rows[program])
    assert ("PyLate" in rows) == (name == "lateon-code")
    # Version 4 stops where it would compute something else.
    new = "transformers 5" in rows["sentence-transformers"]
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == ("TokenizersBackend" if new else "PreTrainedTokenizerFast")


def test_adapters_name_their_model_as_the_user_did(source, tmp_path, monkeypatch):
    monkeypatch.chdir(source.parent)
    encoder = Encoder.from_pretrained("source", lora=LoraConfig(rank=2))
    encoder.replace(encoder._state).save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "source"

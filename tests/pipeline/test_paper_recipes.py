"""The paper's own recipes, shrunk: every stage on real text, to a model that others load."""

import json

import numpy as np
import pytest
from command import alone
from tiny_project import ROOT, metrics

from nvret_jax.api import Encoder, load_dataset

pytestmark = pytest.mark.slow


def ndcg(run):
    """Mean nDCG@10 of a ranking in TREC's format, by the definition."""
    ranked = {}
    for line in run.read_text().splitlines():
        query, _, passage, _, score, _ = line.split()
        ranked.setdefault(query, []).append((-float(score), passage))
    qrels = load_dataset("pydocs:").qrels["test"]
    found = []
    for query, hits in ranked.items():
        grades = [qrels[query].get(passage, 0) for _, passage in sorted(hits)[:10]]
        ideal = sorted(qrels[query].values(), reverse=True)[:10]
        gain, most = (sum(g / np.log2(i + 2) for i, g in enumerate(x)) for x in (grades, ideal))
        found.append(gain / most)
    assert found
    return np.mean(found)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("nv_retriever_v1", ["retrieval", "all"]), ("e5_large_ablation", ["train"])],
)
def test_a_recipe_of_the_paper_runs_to_its_end(tmp_path, name, stages):
    workdir = tmp_path / "w"
    config = ROOT / "configs" / f"{name}.py"
    result = alone(f"--config={config}:smoke", f"--workdir={workdir}")
    assert result.status == 0, result.stderr[-3000:]
    losses = [line for line in metrics(workdir) if "loss" in line]
    assert list(dict.fromkeys(line["stage"] for line in losses)) == stages
    assert len(losses) == 12 * len(stages)
    scores = json.loads((workdir / "evaluation" / "pydocs.json").read_text())
    assert scores["ndcg_cut_10"] == pytest.approx(ndcg(workdir / "evaluation" / "pydocs.trec"))
    exported = Encoder.from_pretrained(str(workdir / "export"))
    emb_nd = exported.encode(["Sorts an array in place.", "Sorts an array in place."])
    np.testing.assert_allclose(np.linalg.norm(emb_nd, axis=1), 1, atol=1e-5)
    if name == "nv_retriever_v1":
        architecture = json.loads((workdir / "export" / "config.json").read_text())
        assert (architecture["model_type"], architecture["is_causal"]) == ("mistral", False)
        assert architecture["use_bidirectional_attention"] is True
        assert architecture["sliding_window"] is None
        assert scores["ndcg_cut_10"] != scores["before"]["ndcg_cut_10"]

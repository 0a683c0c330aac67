"""`nv.train` and `nv.mine` on data sets, and what `nv.run` returns."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_project
import virtual_devices

import nvret_jax as nv
from nvret_jax.search.rankers.bm25 import Bm25Ranker

HOW = {"batch_size": 8, "num_negatives": 2, "steps": 3, "learning_rate": 1e-3, "dev": None}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    tiny_project.make(folder)
    return folder


@pytest.fixture(scope="module")
def data(project):
    return nv.load_dataset(project / "data")


@pytest.fixture(scope="module")
def student(project):
    return nv.Encoder.from_pretrained(project / "model", normalize=True, max_length=16)


@pytest.fixture(scope="module")
def negatives(data, student):
    return nv.mine(data, teacher=student, rule="naive", num_negatives=3, progress=False)


def hard_alone(queries_bd, passages_bgd, batch):
    """InfoNCE over a row's own passages, as a user would write it."""
    scores_bg = jnp.einsum("bd,bgd->bg", queries_bd, passages_bgd) / 0.05
    scores_bg = jnp.where(batch["passage_ids"] >= 0, scores_bg, -jnp.inf)
    best_b = scores_bg.argmax(axis=1)
    value = -jax.nn.log_softmax(scores_bg, axis=1)[:, 0].mean()
    return value, {"first": (best_b == 0).mean(), "teacher": batch["teacher_scores"][0, 0]}


def losses(encoder):
    return encoder.history.series("loss")[1]


def test_a_loss_as_a_function_is_the_loss_of_the_package(compiled, data, student, negatives):
    theirs = nv.train(student, data, negatives, loss=hard_alone, **HOW)
    ours = nv.train(student, data, negatives, loss=nv.Loss(in_batch=False), **HOW)
    np.testing.assert_allclose(losses(theirs), losses(ours), rtol=2e-4)
    assert losses(ours)[0] != losses(ours)[-1]
    text = ["the wing of heat"]
    np.testing.assert_allclose(theirs.encode(text), ours.encode(text), atol=2e-4)
    assert np.abs(theirs.encode(text) - student.encode(text)).max() > 1e-3
    assert {"first", "teacher", "learning_rate", "loss"} <= set(theirs.history.names())
    assert -1 <= theirs.history.series("teacher")[1][0] <= 1
    assert isinstance(theirs, nv.Encoder)
    assert not student.history


@pytest.mark.slow
def test_a_loss_as_a_function_is_the_same_on_eight_devices(project, data, student, negatives):
    code = f"""
import sys
sys.path[:0] = ["tests/api", "tests", "tests/pipeline", "tests/models"]
import nvret_jax as nv
from test_train import HOW, hard_alone, losses
data = nv.load_dataset("beir:{project / "data"}")
student = nv.Encoder.from_pretrained("{project / "model"}", normalize=True, max_length=16)
assert student.mesh.size == 8
negatives = nv.mine(data, teacher=student, rule="naive", num_negatives=3, progress=False)
print("losses", *losses(nv.train(student, data, negatives, loss=hard_alone, **HOW)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=virtual_devices.environment(8),
        cwd=tiny_project.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(one for one in done.stdout.split("\n") if one.startswith("losses"))
    here = losses(nv.train(student, data, negatives, loss=hard_alone, **HOW))
    np.testing.assert_allclose([float(word) for word in line.split()[1:]], here, rtol=2e-4)


def test_a_schedule_and_an_optimizer(compiled, data, student, negatives):
    stays = nv.train(student, data, negatives, schedule=lambda step: 0.0 * step, **HOW)
    text = ["the wing of heat"]
    np.testing.assert_array_equal(stays.encode(text), student.encode(text))
    assert stays.history.series("learning_rate")[1] == [0, 0, 0]
    cosine = optax.cosine_decay_schedule(1e-3, 3)
    moved = nv.train(student, data, negatives, schedule=cosine, **HOW)
    wanted = [float(cosine(step)) for step in range(3)]
    np.testing.assert_allclose(moved.history.series("learning_rate")[1], wanted, rtol=1e-6)
    assert np.abs(moved.encode(text) - student.encode(text)).max() > 1e-3
    still = nv.train(student, data, negatives, optimizer=optax.sgd(0.0), **HOW)
    np.testing.assert_array_equal(still.encode(text), student.encode(text))


def test_dev_scores_choose_the_best(compiled, data, student, negatives):
    how = HOW | {"dev": "dev", "eval_every": 1, "learning_rate": 0.05, "warmup": 0}
    best = nv.train(student, data, negatives, pick="best", **how)
    steps, scores = best.history.series("dev_ndcg_cut_10")
    assert steps == [0, 1, 2, 3]
    found = nv.evaluate(best, data, "dev").metrics["ndcg_cut_10"]
    assert found == pytest.approx(max(scores[1:]), abs=1e-6)
    figure = best.history.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "dev nDCG@10", "learning rate"]
    assert "History(3 steps: " in repr(best.history)


def test_given_negatives_are_trained_on(compiled, student):
    rows = [(f"the wing {word}", f"heat {word}", f"cell {word}") for word in "a of in at".split()]
    data = nv.load_dataset(rows, split="train")
    seen = []

    def loss(queries, passages, batch):
        seen.append((passages.shape, "teacher_scores" in batch))
        return (queries.sum() - passages.sum()) * 0.0, {
            "filled": (batch["passage_ids"] >= 0).mean()
        }

    how = HOW | {"batch_size": 4, "steps": 1}
    trained = nv.train(student, data, loss=loss, **how)
    assert seen[0] == ((4, 3, 32), False)
    assert trained.history[0]["filled"] == pytest.approx(2 / 3)  # one negative each, of two


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda s, d, n: nv.train("all-MiniLM", d, n),
            "as of Encoder.from_pretrained('all-MiniLM')",
        ),
        (lambda s, d, n: nv.train(s, "csv:x", n), "unknown scheme 'csv'"),
        (lambda s, d, n: nv.train(s, d, "x.parquet"), "negatives='x.parquet' (str): expected what"),
        (lambda s, d, n: nv.train(s, (["a"], ["b"]), n), "mined for another one"),
        (lambda s, d, n: nv.train(s, (["a"], ["b"])), "lists of texts need negatives=mine("),
        (lambda s, d, n: nv.train(s, d, n, pick="best", dev=None), "there is no dev split"),
        (lambda s, d, n: nv.train(s, d, n, dev="validation"), "no split 'validation'"),
        (lambda s, d, n: nv.train(s, d, split="tran"), "no split 'tran'"),
        (lambda s, d, n: nv.train(s, d, n, loss="infonce"), "expected nv.Loss(…), or a function"),
        (lambda s, d, n: nv.train(s, d, n, loss=nv.Loss), "expected nv.Loss(…)"),
        (lambda s, d, n: nv.train(s, d, n, loss=nv.Loss(), temperature=0.1), "a loss is given"),
        (lambda s, d, n: nv.train(s, d, n, temperature=0), "temperature=0"),
        (lambda s, d, n: nv.train(s, d, n, learning_rate="fast"), "learning_rate='fast'"),
        (lambda s, d, n: nv.train(s, d, n, epochs=0), "epochs=0: expected a number above 0"),
        (lambda s, d, n: nv.train(s, d, n, lr=1e-3), "no argument 'lr'; give learning_rate="),
        (lambda s, d, n: nv.train(s, d, n, output_dir="x"), "nothing is kept on disk"),
        (lambda s, d, n: nv.train(s, d, n, checkpoint_every=5), "a run has it: nv.run(config)"),
        (lambda s, d, n: nv.train(s, d, n, batchsize=5), "did you mean 'batch_size'?"),
        (lambda s, d, n: nv.train(s, d, n, schedule="step"), "schedule='step'"),
        (lambda s, d, n: nv.train(s, d, n, schedule=lambda step: "x"), "schedule(0) is 'x'"),
        (lambda s, d, n: nv.train(s, d, n, schedule=lambda step: None), "schedule(0) is None"),
        (lambda s, d, n: nv.train(s, d, n, schedule=lambda step: np.nan), "schedule(0) is nan"),
        (lambda s, d, n: nv.train(s, d, n, optimizer="adam"), "expected an optax optimizer"),
        (
            lambda s, d, n: nv.train(s, d, n, optimizer=optax.sgd(1), schedule=lambda step: 1.0),
            "an optimizer has its own",
        ),
        (
            lambda s, d, n: nv.train(s, d, n, loss=lambda q, p, b: q.sum(axis=1), **HOW),
            "the function returned (8,); expected a scalar",
        ),
    ],
)
def test_train_says_what_to_do(data, student, negatives, call, words):
    with pytest.raises(nv.InputError) as error:
        call(student, data, negatives)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_negatives_of_another_data_set_are_refused(data, student, negatives):
    corpus = dict(zip(data.corpus.ids[::-1], data.corpus.texts, strict=True))
    queries = dict(zip(data.queries.ids, data.queries.texts, strict=True))
    other = nv.load_dataset({"corpus": corpus, "queries": queries, "qrels": data.qrels})
    with pytest.raises(nv.InputError, match=r"other positives for query .* mined for another one"):
        nv.train(student, other, negatives, dev=None)


def test_mine_on_a_data_set_is_mine_on_its_lists(data, student, negatives):
    positives = data.positives("train")
    lists = nv.mine(
        [data.queries.texts[data.queries.row[query]] for query in positives],
        data.corpus.texts,
        [[data.corpus.row[passage] for passage in one] for one in positives.values()],
        teacher=student,
        query_ids=list(positives),
        passage_ids=data.corpus.ids,
        mining=nv.Mining(rule=nv.Rule("naive"), num_negatives=3),
        progress=False,
    )
    np.testing.assert_array_equal(lists.negative_rows.values, negatives.negative_rows.values)
    rows = [data.queries.row[query] for query in positives]
    assert negatives.query_rows.tolist() == np.array(rows)[lists.query_rows].tolist()
    # Queries of another split are not the first ones of the table.
    dev = nv.mine(data, teacher=student, split="dev", rule="naive", progress=False)
    assert dev.query_rows.tolist() == [data.queries.row[q] for q in data.positives("dev")]
    assert dev.query_rows[0] > 0
    with pytest.raises(nv.InputError, match="num_negatives is given, and mining=Mining"):
        nv.mine(data, teacher=student, num_negatives=3, mining=nv.Mining())
    with pytest.raises(nv.InputError, match="passages are given, and a data set"):
        nv.mine(data, ["a"], teacher=student)


def test_mine_scores_for_distillation_with_several_teachers(data, student, negatives, monkeypatch):
    words = Bm25Ranker(
        [data.queries.texts[data.queries.row[query]] for query in data.positives("train")],
        data.corpus.texts,
    )
    how = {"teacher": student, "rule": "naive", "num_negatives": 3, "progress": False}
    found = nv.mine(data, targets=[student, words], num_distilled=4, **how)
    np.testing.assert_array_equal(found.negative_rows.values, negatives.negative_rows.values)
    alone = nv.mine(data, targets=words, num_distilled=4, **how)
    numbers = {row: number for number, row in enumerate(found.query_rows.tolist())}
    ours, rest = [], []
    for side in _SIDES:
        rows = getattr(found, f"{side}_rows")
        by_words = rows.like(words.score(np.array([numbers[q] for q in found.query_rows]), rows))
        scores = getattr(found, f"{side}_scores")
        # A row's targets are scores times one factor for all rows, less the row's level.
        for r in range(len(found)):
            one, both = (getattr(t, f"{side}_targets")[r] for t in (alone, found))
            ours.append((by_words[r] - by_words[r][0], one - one[0]))
            rest.append((scores[r] - scores[r][0], 2 * (both - both[0]) - (one - one[0])))
    for pairs in (ours, rest):
        scores, made = (np.concatenate(side) for side in zip(*pairs, strict=True))
        factor = made @ scores / (scores @ scores)
        assert factor > 0
        np.testing.assert_allclose(made, factor * scores, atol=2e-4)

    def distilled(table: nv.Negatives, **loss) -> float:
        loss = nv.Loss(distillation="kl", **loss)
        made = nv.train(student, data, table, loss=loss, **HOW | {"steps": 1}, num_distilled=4)
        return made.history.series("distillation")[1][0]

    tables = dataclasses.replace(
        found,
        **{f"{side}_scores": getattr(found, f"{side}_targets") for side in _SIDES},
        **{f"{side}_targets": None for side in _SIDES},
    )
    # Nothing is embedded before a mistake is found, nor twice.
    calls, encode = [], type(student).encode

    def counted(self, texts, **how):
        calls.append(len(texts))
        return encode(self, texts, **how)

    monkeypatch.setattr(type(student), "encode", counted)
    with pytest.raises(nv.InputError, match=r"mine: targets=3 \(int\): expected an Encoder"):
        nv.mine(data, targets=3, **how)
    with pytest.raises(nv.InputError, match="mine: targets='bm25:': give what it names"):
        nv.mine(data, targets=["bm25:"], **how)
    assert not calls
    nv.mine(data, targets=student, **how)
    assert len(calls) == 2
    assert nv.mine(data, targets=None, **how).positive_targets is None
    few = Bm25Ranker(["a question of words"] * 3, data.corpus.texts)
    with pytest.raises(nv.InputError, match="a teacher or target ranks for 3 query texts"):
        nv.mine(data, targets=few, **how)
    with pytest.raises(nv.InputError, match="num_distilled=5: the table has at most 4 candidates"):
        nv.train(student, data, found, loss=nv.Loss(distillation="kl"), num_distilled=5, **HOW)
    expected = distilled(tables, teacher_temperature=1.0)
    assert expected > 0
    assert distilled(found) == pytest.approx(expected, rel=1e-5)


_SIDES = ("positive", "negative", "distilled")


def test_a_run_mines_the_same_and_says_where_it_is(project, data, tmp_path):
    config = nv.config.base()
    config.data.train, config.data.test = f"beir:{project / 'data'}", ""
    for side in (config.teacher, config.student):
        side.model = str(project / "model")
        side.query_length = side.passage_length = 24
    config.mining.num_negatives = config.train.num_negatives = 3
    result = nv.run(config, tmp_path / "w", stages=("embed", "search", "mine"))
    assert set(result.paths) >= {"negatives", "candidates", "config"}
    assert result.scores == {}
    assert len(result.history) == 0
    from nvret_jax.mining.negatives import Negatives

    made = Negatives.read(result.paths["negatives"] / "train.parquet", data.queries, data.corpus)
    teacher = nv.Encoder.from_pretrained(project / "model", max_length=24, normalize=True)
    mined = nv.mine(data, teacher=teacher, num_negatives=3, progress=False)
    np.testing.assert_array_equal(mined.query_rows, made.query_rows)
    np.testing.assert_array_equal(mined.negative_rows.values, made.negative_rows.values)
    np.testing.assert_allclose(mined.negative_scores.values, made.negative_scores.values, atol=1e-6)


def test_the_scores_of_a_run(tmp_path):
    means = dict.fromkeys(("ndcg_cut_10", "map"), 0.25)
    (tmp_path / "evaluation").mkdir()
    found = {"dataset": "x", "split": "test", "trained": True, "before": means, **means, "map": 0.5}
    (tmp_path / "evaluation" / "x.json").write_text(json.dumps(found))
    (tmp_path / "evaluation" / "x.overlap.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "train", "loss": 2.0}\n')
    from etils import epath

    result = nv.Result(epath.Path(tmp_path))
    assert result.scores == {"x test": {"before": means, "after": means | {"map": 0.5}}}
    assert result.history.series("loss") == ([1], [2.0])
    assert "x test nDCG@10 0.2500 → 0.2500" in repr(result)
    with pytest.raises(nv.InputError, match="export: no such folder; run the stage export"):
        _ = result.encoder

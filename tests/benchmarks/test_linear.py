"""The linear student, cut data sets, and tables of what is mined."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
from etils import epath

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipeline")]
import tiny_cross_encoders  # noqa: E402
import tiny_project  # noqa: E402

from benchmarks.lab import __main__ as lab  # noqa: E402
from benchmarks.lab import grid as grid_lib  # noqa: E402
from benchmarks.lab import mined, sets  # noqa: E402
from benchmarks.lab import page as lab_page  # noqa: E402
from benchmarks.lab.linear import run as linear  # noqa: E402
from benchmarks.lab.linear import task as task_lib  # noqa: E402
from benchmarks.lab.linear import train as train_lib  # noqa: E402
from nvret_jax import config as config_lib  # noqa: E402
from nvret_jax import pipeline  # noqa: E402
from nvret_jax.data.load import load_dataset  # noqa: E402
from nvret_jax.errors import InputError  # noqa: E402
from nvret_jax.evaluation import retrieval  # noqa: E402
from nvret_jax.mining.negatives import Negatives  # noqa: E402
from nvret_jax.options import blocks  # noqa: E402
from nvret_jax.training.batches.clusters import Clusters  # noqa: E402
from nvret_jax.training.options import Training  # noqa: E402

GRID = """
from benchmarks.lab.grid import HIDDEN, DataSet, Grid

GRID = Grid(
    sets={{"tiny": DataSet("beir:{data}", visible=True)}},
    axes={{
        "rule": {{
            "naive": {{"mining.rule": "naive"}},
            "oracle": {{"mining.verdicts": HIDDEN, "mining.rule": "naive",
                        "mining.verdict_mode": "remove"}},
            "drawn": {{"mining.rule": "naive", "mining.num_negatives": 6,
                       "train.draw.how": "uniform"}},
            "random": {{"mining.rule": "naive", "mining.teachers": ("random",)}},
        }}
    }},
    teachers={{"random": "random:"}},
    values={{
        "teacher.model": "{model}", "student.model": "{model}", "search.depth": 10,
        "train.num_negatives": 2, "mining.num_negatives": 3, "train.warmup": 0.25,
        "train.eval_every": 2,
    }},
    second="oracle",
    until="{until}",
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny data set in which most queries have three positives, a model, and two grids."""
    folder = tmp_path_factory.mktemp("linear")
    tiny_project.make(folder)
    qrels = folder / "data" / "qrels" / "train.tsv"
    more = [f"q{i}\tp{2 * i + k}\t1" for i in range(24) for k in (1, 40) if k == 40 or i % 5]
    qrels.write_text(qrels.read_text() + "\n".join(more) + "\n")
    for until in ("evaluate", "mine"):
        text = GRID.format(data=folder / "data", model=folder / "model", until=until)
        (folder / f"{until}.py").write_text(text)
    return folder


def test_scores_are_those_of_trec_eval():
    rng = np.random.default_rng(0)
    queries_qd, passages_nd = rng.normal(size=(5, 8)), rng.normal(size=(150, 8))
    map_dd = 0.3 * rng.normal(size=(8, 8))
    gains_qn = np.where(rng.random((5, 150)) < 0.1, rng.integers(1, 4, (5, 150)), 0)
    gains_qn[2, 7] = -1
    judged = train_lib.Judged.of(gains_qn.astype(np.float32))
    ndcg, recall = train_lib.scores(map_dd, queries_qd, passages_nd, judged)
    q, p = (x + x @ map_dd for x in (queries_qd, passages_nd))
    cosines = q @ p.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(p, axis=1)
    order = [[n for n in np.argsort(-cosines[i]) if gains_qn[i, n] >= 0][:100] for i in range(5)]
    run = {str(i): {str(n): float(cosines[i, n]) for n in order[i]} for i in range(5)}
    judged = {str(i): {str(n): int(max(0, g)) for n, g in enumerate(gains_qn[i])} for i in range(5)}
    _, wanted = retrieval.metrics(run, judged)
    np.testing.assert_allclose(ndcg, [wanted[str(i)]["ndcg_cut_10"] for i in range(5)], atol=1e-6)
    np.testing.assert_allclose(recall, [wanted[str(i)]["recall_100"] for i in range(5)], atol=1e-6)


def test_linear_cells_mine_and_train_as_the_pipeline_does(project, tmp_path, monkeypatch):
    few = {"train.steps": 20, "train.batch_size": 4, "train.learning_rate": 0.03}
    monkeypatch.setattr(linear, "VALUES", linear.VALUES | few)
    monkeypatch.setattr(linear, "SEEDS", (0, 1))
    command = [str(project / "evaluate.py"), f"--out={tmp_path}", "--student=linear"]
    assert lab.main(command) == 0
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("linear/*.json")}
    assert len(files) == 8
    found = {
        (one["label"]["rule"], one["label"]["seed"]): one
        for one in (json.loads(file.read_text()) for file in files)
    }
    assert found["oracle", "0"]["false_negative_share"] == 0
    assert found["naive", "0"]["false_negative_share"] > 0
    end = {key: (one["per_query"], one["dev"], one["recall_100"]) for key, one in found.items()}
    for other in (("oracle", "0"), ("drawn", "0"), ("random", "0"), ("naive", "1")):
        assert end["naive", "0"] != end[other], other
    assert [step for step, _ in found["naive", "0"]["dev"]] == [0, 10, 20]
    assert found["naive", "0"]["before"] == found["random", "1"]["before"]
    assert "random | 2 |" in (tmp_path / "evaluate_linear.md").read_text()
    assert lab.main(command) == 0  # nothing is done twice
    assert {file: file.stat().st_mtime_ns for file in files} == files

    # The negatives are those of the pipeline's stage.
    assert lab.main([str(project / "mine.py"), f"--out={tmp_path}", "--only", "seed=0"]) == 0
    grid = grid_lib.read(str(project / "mine.py"))
    cells = lab.cells_of(grid, tmp_path, {"seed": ("0",)})
    made = sets.make(grid.sets["tiny"], tmp_path / "data" / "tiny")
    for cell in cells:
        task = task_lib.read(made, cell.config, tmp_path / "vectors")
        table = task.negatives(cell.config)
        ids = {
            task.queries.ids[q]: [task.data.corpus.ids[p] for p in table.negative_rows[row]]
            for row, q in enumerate(table.query_rows.tolist())
        }
        assert json.loads(cell.result(tmp_path).read_text())["negatives"] == ids, cell.label
    text = (tmp_path / "mine.md").read_text()
    assert "| oracle | 24 | 72 | 0.0 % |" in text


def test_a_step_descends_the_loss_of_the_package(project, tmp_path):
    """Against the InfoNCE of one batch in float64, by differences."""
    grid = grid_lib.read(str(project / "evaluate.py"))
    made = sets.make(grid.sets["tiny"], tmp_path / "tiny")
    config = grid.config({"seed": "0", "set": "tiny", "rule": "naive"}, made.places)
    task = task_lib.read(made, config, tmp_path)
    block = blocks.read(Training, config.train)
    block = dataclasses.replace(
        block, steps=1, batch_size=4, warmup=0.0, weight_decay=0.0, clip_norm=0.0, eps=1e-12
    )
    steps = train_lib.batches(task, task.negatives(config), block, 0)
    queries_qd, passages_nd = (
        task.encoded(config.student, "train"),
        task.encoded(config.student, ""),
    )
    (_, start), (_, map_dd) = train_lib.train(queries_qd, passages_nd, steps, block, 1)
    assert not start.any()

    def loss(map_dd):
        q = queries_qd[steps["query_rows"][0]].astype(np.float64)
        p = passages_nd[np.maximum(steps["passage_rows"][0], 0)].astype(np.float64)
        q, p = (x + x @ map_dd for x in (q, p))
        q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, p))
        logits, total = q @ p.T / 0.05, 0.0
        for b in range(4):
            own = b * 3
            known = set(steps["positive_ids"][0, b])
            keep = [own] + [
                n for n, i in enumerate(steps["passage_ids"][0]) if i >= 0 and i not in known
            ]
            total += np.log(np.exp(logits[b, keep]).sum()) - logits[b, own]
        return total / 4

    # The first step of Adam moves each weight against the sign of its gradient.
    rng = np.random.default_rng(1)
    width = map_dd.shape[0]
    for i, j in rng.integers(width, size=(12, 2)).tolist():
        step = np.zeros((width, width))
        step[i, j] = 1e-5
        slope = (loss(step) - loss(-step)) / 2e-5
        if abs(slope) > 1e-3:
            assert np.sign(map_dd[i, j]) == -np.sign(slope)


def test_a_guide_masks_and_distilled_candidates_are_fitted(project, tmp_path):
    """A guide of equal vectors masks the negatives of all other rows."""
    grid = grid_lib.read(str(project / "evaluate.py"))
    made = sets.make(grid.sets["tiny"], tmp_path / "tiny")
    config = grid.config({"seed": "0", "set": "tiny", "rule": "naive"}, made.places)
    config.mining.num_distilled = 2
    task = task_lib.read(made, config, tmp_path)
    table, block = task.negatives(config), blocks.read(Training, config.train)
    block = dataclasses.replace(block, steps=2, batch_size=4, learning_rate=0.02, warmup=0.0)
    vectors = task.encoded(config.student, "train"), task.encoded(config.student, "")
    equal = tuple(np.ones_like(one) for one in vectors)

    def trained(guide=None, num_distilled=0, **values):
        loss = dataclasses.replace(block.loss, **values)
        own = dataclasses.replace(block, loss=loss, num_distilled=num_distilled)
        steps = train_lib.batches(task, table, own, 0)
        return train_lib.train(*vectors, steps, own, 1, guide)[-1][1]

    mask = {"score_mask": "percent", "mask_by": "guide"}
    assert task.guide(config)[0].shape == vectors[0].shape
    masked = trained(equal, **mask)
    np.testing.assert_allclose(masked, trained(in_batch=False), atol=1e-6)
    assert np.abs(masked - trained()).max() > 1e-4
    fitted = trained(distillation="kl")
    assert np.abs(fitted - trained(num_distilled=2, distillation="kl")).max() > 1e-4

    # A guide with the student's own vectors, turned: the map begins there and stays.
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(vectors[0].shape[1],) * 2))
    turned = tuple(np.float32(one @ rotation) for one in vectors)
    loss = dataclasses.replace(block.loss, vectors="cosine", contrastive_weight=0.0)
    own = dataclasses.replace(block, loss=loss, weight_decay=0.0)
    steps = train_lib.batches(task, table, own, 0)
    maps = train_lib.train(*vectors, steps, own, 1, turned, turned=True)
    found = vectors[1] + vectors[1] @ maps[0][1]
    np.testing.assert_allclose(found, turned[1], atol=1e-5)


@pytest.mark.parametrize("order", ["unchanged", "rescored"])
def test_targets_and_rescored_candidates_are_those_of_the_pipeline(order, project, tmp_path):
    model = tiny_cross_encoders.write(tmp_path / "models" / "tiny")
    grid = grid_lib.read(str(project / "mine.py"))
    values = {
        "train.loss.distillation": "kl",
        "mining.num_distilled": 2,
        "mining.targets": ("teacher", "rescorer"),
        "rescorer.model": f"{model.parent}/{grid_lib.SET_NAME}",
        "rescorer.order": order,
        "rescorer.depth": 8,
    }
    axes = {"rule": {"naive": {"mining.rule": "naive"} | values}}
    grid = dataclasses.replace(grid, axes=axes, second="")
    made = sets.make(grid.sets["tiny"], tmp_path / "tiny")
    config = grid.config({"seed": "0", "set": "tiny", "rule": "naive"}, made.places)
    assert config.rescorer.model == str(model)
    ours = task_lib.read(made, config, tmp_path / "vectors").negatives(config)
    pipeline.run(config, tmp_path / "w", stages=("embed", "search", "mine"))
    data = load_dataset(made.source)
    theirs = Negatives.read(
        epath.Path(tmp_path / "w" / "negatives" / "train.parquet"), data.queries, data.corpus
    )
    np.testing.assert_array_equal(ours.negative_rows.values, theirs.negative_rows.values)
    np.testing.assert_array_equal(ours.distilled_rows.values, theirs.distilled_rows.values)
    for name in ("negative_scores", "negative_targets", "positive_targets", "distilled_targets"):
        values = getattr(ours, name).values, getattr(theirs, name).values
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)
    # Pairs once scored are read, and new ones added to them.
    (file,) = (tmp_path / "vectors").glob("pairs-*.npz")
    with np.load(file) as kept:
        known = kept["keys"]
    score = task_lib.read(made, config, tmp_path / "vectors")._pairs(config)
    pairs = np.array([[0, 1], [int(known[5] >> 32), int(known[5] & 0xFFFFFFFF)], [0, 1]])
    scores = score(pairs)
    assert scores[0] == scores[2]
    with np.load(file) as kept:
        assert set(known) <= set(kept["keys"])
        assert kept["scores"][np.searchsorted(kept["keys"], known[5])] == scores[1]


def test_a_set_may_be_evaluated_on_another(project, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(project / "data", other)
    for file in (other / "corpus.jsonl", other / "queries.jsonl", *other.glob("qrels/*")):
        file.write_text(re.sub(r"\b([pq])(\d+)\b", r"\1x\2", file.read_text()))
    with open(other / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": "more", "text": "a b"}) + "\n")
    grid = linear.changed(grid_lib.read(str(project / "evaluate.py")))
    few = grid.values | {"train.steps": 10, "train.batch_size": 4}
    made = dataclasses.replace(grid.sets["tiny"], values={"data.test": f"beir:{other}"})
    grid = dataclasses.replace(grid, values=few, sets={"tiny": made})
    only = {"seed": ("0",), "rule": ("naive",)}
    (cell,) = linear.cells_of(grid, tmp_path, only)
    linear.run(grid, [cell], tmp_path)
    found = json.loads(cell.result(tmp_path).read_text())
    assert set(found["per_query"]) == set(load_dataset(f"beir:{other}").qrels["test"])
    same = dataclasses.replace(grid, sets={"tiny": dataclasses.replace(made, values={})})
    assert linear.cells_of(same, tmp_path, only)[0].key != cell.key


def test_only_values_that_differ_from_defaults_make_another_cell(project, tmp_path):
    """So an option that is new, or has a new default, leaves finished cells as they are."""
    grid = grid_lib.read(str(project / "evaluate.py"))
    made = sets.make(grid.sets["tiny"], tmp_path / "tiny")
    config = grid.config({"seed": "0", "set": "tiny", "rule": "naive"}, made.places)
    before = linear._changed(config.to_dict(), linear._defaults(config))
    config_lib.add_teacher(config, "words", "bm25:")
    config_lib.add_set(config, "more", "", teachers=("words",))
    more = linear._changed(config.to_dict(), linear._defaults(config))
    added = {key for key in more if key not in before}
    assert added == {"teachers.words.model", "sets.more.teachers"}
    config_lib.add_stage(config, "first", steps=7)
    more = linear._changed(config.to_dict(), linear._defaults(config))
    added = {key.removeprefix("train_stages.first.") for key in more if "train_stages" in key}
    own = {key.removeprefix("train.") for key in before if key.startswith("train.")}
    assert added == own | {"steps"}


def test_a_page_is_not_emptied_where_no_cell_has_finished(project, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- evaluate_linear begin -->\nold\n<!-- evaluate_linear end -->\n")
    command = [str(project / "evaluate.py"), f"--out={tmp_path}", "--student=linear"]
    assert lab.main([*command, f"--page={page}"]) == 2
    assert "run it without --page first" in capsys.readouterr().err
    assert "old" in page.read_text()
    assert not (tmp_path / "lab").exists()
    assert lab.main([*command, "--report"]) == 0
    assert capsys.readouterr().out == "No cell has finished.\n"
    assert not list(tmp_path.glob("*.csv"))


def test_a_page_that_cannot_be_written_and_a_folder_that_is_none(project, tmp_path, capsys):
    """One line each, before anything is written."""
    grid = linear.changed(grid_lib.read(str(project / "evaluate.py")))
    cells = linear.cells_of(grid, tmp_path, {"seed": ("0",)})
    for cell in cells:
        cell.result(tmp_path).parent.mkdir(exist_ok=True)
        cell.result(tmp_path).write_text("{}")
    page = tmp_path / "page.md"
    command = [str(project / "evaluate.py"), "--student=linear", "--only", "seed=0"]
    with pytest.raises(
        InputError, match=r"--page .*page\.md: no such file; give one with the lines"
    ):
        lab_page.write("evaluate_linear", grid, cells, tmp_path, page)
    page.write_text("nothing")
    with pytest.raises(InputError, match="add the lines <!-- evaluate_linear begin -->"):
        lab_page.write("evaluate_linear", grid, cells, tmp_path, page)
    assert page.read_text() == "nothing"
    assert not (tmp_path / "lab").exists()
    assert lab.main([*command, f"--out={page}"]) == 2
    assert "page.md: expected a folder" in capsys.readouterr().err
    assert lab.main([*command, f"--out={tmp_path}", "--devices", "0"]) == 2
    assert "are for whole students" in capsys.readouterr().err


def test_a_teacher_without_a_model_is_refused_before_any_cell(project, tmp_path):
    grid = grid_lib.read(str(project / "evaluate.py"))
    for model, words in (("", "its own data sets only"), (str(tmp_path / "x"), "no such folder")):
        other = dataclasses.replace(
            grid, teachers={"mine": model}, values={"mining.teachers": ("mine",)}
        )
        with pytest.raises(InputError, match=rf"teachers\.mine\.model.*{words}"):
            linear.cells_of(linear.changed(other), tmp_path, {"rule": ("naive",)})


def test_clusters_fill_the_batches(project, tmp_path):
    grid = grid_lib.read(str(project / "evaluate.py"))
    made = sets.make(grid.sets["tiny"], tmp_path / "tiny")
    config = grid.config({"seed": "0", "set": "tiny", "rule": "naive"}, made.places)
    config.train.update({"batch_size": 6, "steps": 8, "cluster_size": 6})
    task = task_lib.read(made, config, tmp_path)
    table, block = task.negatives(config), blocks.read(Training, config.train)
    steps = train_lib.batches(task, table, block, 3, task.guide(config))
    order = Clusters.of(table, *task.guide(config), 6)
    wanted = [table.query_rows[order.order(3, epoch, 6)] for epoch in (0, 1)]
    assert steps["query_rows"].ravel().tolist() == np.concatenate(wanted).tolist()


STAGED = {
    "sets.first.teachers": ("random",),
    "train_stages.first.sets": ("first",),
    "train_stages.first.steps": 10,
    "train_stages.second.sets": ("train",),
    "train_stages.second.steps": 10,
}


def test_stages_and_rounds_go_on_with_other_teachers(project, tmp_path, monkeypatch):
    few = {"train.steps": 10, "train.batch_size": 4, "train.learning_rate": 0.03}
    monkeypatch.setattr(linear, "VALUES", linear.VALUES | few)
    monkeypatch.setattr(linear, "SEEDS", (0,))
    grid = linear.changed(grid_lib.read(str(project / "evaluate.py")))
    naive, random = (grid.axes["rule"][name] for name in ("naive", "random"))
    levels = {
        "naive": naive,
        "random": random,
        "staged": naive | STAGED,
        "rounds": naive | {"rounds": 2},
    }
    grid = dataclasses.replace(grid, axes={"rule": levels})
    cells = {cell.label["rule"]: cell for cell in linear.cells_of(grid, tmp_path, {})}
    assert len({cell.key for cell in cells.values()}) == 4
    tables = {}
    own = linear._table

    def table(task, config, made):
        found = own(task, config, made)
        tables.setdefault((bool(task.student), config.mining.teachers), found)
        return found

    monkeypatch.setattr(linear, "_table", table)
    linear.run(grid, list(cells.values()), tmp_path)
    found = {name: json.loads(cell.result(tmp_path).read_text()) for name, cell in cells.items()}
    # The first stage is that of a cell of its teacher, and so is the first round; then they go on.
    for name, like in (("staged", "random"), ("rounds", "naive")):
        assert [step for step, _ in found[name]["dev"]] == [0, 10, 20]
        assert found[name]["dev"][:2] == found[like]["dev"], name
    ends = [json.dumps(one["per_query"]) for one in found.values()]
    assert len(set(ends)) == 4
    assert found["staged"]["hardness"] == found["naive"]["hardness"]  # of the last table
    # The second round's negatives are those of the student that the first round trained.
    config = cells["naive"].config
    made = sets.make(grid.sets["tiny"], tmp_path / "data" / "tiny")
    task = task_lib.read(made, config, tmp_path / "vectors")
    block = blocks.read(Training, config.train)
    vectors = task.encoded(config.student, "train"), task.encoded(config.student, "")
    steps = train_lib.batches(task, task.negatives(config), block, 0)
    map_dd = train_lib.train(*vectors, steps, block, 10)[-1][1]
    student = task.taught_by(tuple(train_lib.apply(map_dd, one) for one in vectors))
    wanted = student.negatives(config)
    seen = tables[True, ("teacher",)]
    assert seen.negative_rows.values.tolist() == wanted.negative_rows.values.tolist()
    assert not np.array_equal(
        seen.negative_rows.values, tables[False, ("teacher",)].negative_rows.values
    )


def test_sets_and_stages_of_a_level_copy_the_values_around_them(project, tmp_path):
    grid = grid_lib.read(str(project / "evaluate.py"))
    values = {**STAGED, **grid.values, "train.batch_size": 6}  # stages are named first
    grid = dataclasses.replace(grid, values=values)
    config = grid.config({"seed": "0", "set": "tiny", "rule": "drawn"}, {"source": "beir:x"})
    assert config.train.stages == ("first", "second")
    stage = config.train_stages.first
    assert (stage.batch_size, stage.num_negatives, stage.draw.how) == (6, 2, "uniform")
    assert (stage.steps, stage.sets) == (10, ("first",))
    assert config.sets.first.source == "beir:x"
    counted = linear._changed(config.to_dict(), linear._defaults(config))
    assert "train_stages.first.steps" in counted
    assert "train_stages.first.weight_decay" not in counted  # a new option changes no cell


def test_a_cut_set_keeps_what_is_judged(project):
    data = load_dataset(f"beir:{project / 'data'}")
    kept = sets.cut(data, {"train": 5}, 30)
    assert len(kept.qrels["train"]) == 5
    assert kept.qrels["test"] == data.qrels["test"]
    judged = {p for rows in kept.qrels.values() for row in rows.values() for p in row}
    assert judged <= set(kept.corpus.ids)
    assert len(kept.corpus) == max(30, len(judged) + 1)
    assert set(kept.queries.ids) == {q for rows in kept.qrels.values() for q in rows}
    assert sets.cut(data, {"train": 5}, 30).corpus.ids == kept.corpus.ids
    assert len(sets.cut(data, {}, 0).corpus) == len(data.corpus)


def test_shares_and_overlaps():
    share, low, high = mined.share_of({"a": [4, 4], "b": [4, 0], "c": [2, 1]})
    assert share == 0.5
    assert low == 0.0
    assert high == 1.0
    assert np.isnan(mined.share_of({})[0])
    one, other = {"a": ["x", "y"], "b": ["x"], "c": []}, {"a": ["y", "z"], "b": ["x"]}
    assert mined.jaccard(one, other)[0] == pytest.approx((1 / 3 + 1) / 2)

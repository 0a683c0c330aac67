"""'Before' is the model as its user had it, 'after' as its export serves it; cuts are counted."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil

import command
import doc_blocks
import pytest
import tiny_project
from etils import epath

from nvret_jax import commands
from nvret_jax.commands import parser
from nvret_jax.data.load import load_dataset
from nvret_jax.evaluation.overlap import Overlap
from nvret_jax.models.encoder import Encoder
from nvret_jax.pipeline import closing, provenance, truncation
from nvret_jax.pipeline.result import Result
from nvret_jax.report import report

EVALUATE = f"--config={tiny_project.ROOT / 'configs' / 'evaluate.py'}"


CHANGES = {
    "student.query_length": 6,
    "student.passage_length": 12,
    "student.query_prompt": "gene ",
    "student.passage_prompt": "cell ",
    "student.pooling": "cls",
}


def arguments(project, workdir):
    """Of the run that trains."""
    changes = (f"--config.{key}={value}" for key, value in CHANGES.items())
    return command.CONFIG, f"--workdir={workdir}", *command.flags_of(project), *changes


@pytest.fixture(scope="module")
def runs(pristine, tmp_path_factory):
    """(project, workdir of a trained run, its output, workdir of the untouched model's scores).

    The model states a query prompt; the run trains with another one, and on short texts.
    """
    folder = tmp_path_factory.mktemp("before")
    project = folder / "project"
    shutil.copytree(pristine, project)
    (project / "model" / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "shock wing ", "passage": ""}})
    )
    done = command.inside(*arguments(project, folder / "run"))
    assert done.status == 0, done.stderr[-3000:]
    alone = command.inside(
        EVALUATE,
        f"--workdir={folder / 'alone'}",
        f"--config.data.test=beir:{project / 'data'}",
        f"--config.student.model={project / 'model'}",
        "--config.distributed.mode=off",
    )
    assert alone.status == 0, alone.stderr[-3000:]
    return project, folder / "run", done.stdout, folder / "alone"


def scores_of(workdir):
    return json.loads((workdir / "evaluation" / "data.json").read_text())


def ranking(path):
    """{(query, passage): score} of a TREC run."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return {(query, passage): float(score) for query, _, passage, _, score, _ in rows}


def test_before_is_the_untouched_model_whatever_it_is_trained_with(runs):
    _, run, _, alone = runs
    found, expected = scores_of(run), scores_of(alone)
    assert found["before"] == pytest.approx({m: expected[m] for m in found["before"]}, abs=1e-6)
    before = ranking(run / "evaluation" / "data.before.trec")
    assert before == pytest.approx(ranking(alone / "evaluation" / "data.trec"), abs=1e-6)


def test_after_is_what_the_export_scores_where_it_is_served(runs):
    project, run, _, _ = runs
    export = Encoder.from_pretrained(str(run / "export"))
    assert export.spec.max_length == 12
    from nvret_jax.evaluation.retrieval import evaluate

    served = evaluate(export, load_dataset(f"beir:{project / 'data'}"), "test")
    found = scores_of(run)
    assert served.metrics == pytest.approx({m: found[m] for m in served.metrics}, abs=1e-6)
    assert (Result(epath.Path(run)).encoder.encode("a gene") == export.encode(["a gene"])[0]).all()


def test_bm25_is_scored_on_the_same_queries_and_kept(runs, tmp_path):
    project, run, output, alone = runs
    from nvret_jax.evaluation.baseline import evaluate_bm25
    from nvret_jax.evaluation.options import EvaluationOptions

    expected = evaluate_bm25(load_dataset(f"beir:{project / 'data'}"), "test", EvaluationOptions())
    for workdir in (run, alone):
        found = json.loads((workdir / "evaluation" / "data.bm25.json").read_text())
        assert found["per_query"] == expected.per_query
        assert {m: found[m] for m in expected.metrics} == expected.metrics
        ranked = ranking(workdir / "evaluation" / "data.bm25.trec")
        assert len(ranked) == sum(map(len, expected.run().values()))
    score = f"{expected.metrics['ndcg_cut_10']:.4f}"
    assert f"evaluate  BM25 on data test: nDCG@10 {score}" in output
    table = output[output.index("Retrieval before") :].splitlines()
    row = next(line for line in table if "nDCG@10 " in line)
    assert [cell.strip() for cell in row.split("│")][2] == score
    assert max(map(len, table[:12])) <= 80
    assert f"| nDCG@10 | {score} |" in (run / "export" / "README.md").read_text()
    # Another student has the same BM25; without it nothing is computed, and nothing states it.
    workdir = tmp_path / "w"
    shutil.copytree(alone, workdir)
    flags = [
        EVALUATE,
        f"--workdir={workdir}",
        f"--config.data.test=beir:{project / 'data'}",
        f"--config.student.model={project / 'model'}",
        "--config.distributed.mode=off",
    ]
    done = command.inside(*flags, "--config.student.query_prompt=heat ")
    assert "making evaluation/data.json" in done.stdout
    assert "making evaluation/data.bm25.json" not in done.stdout
    assert "BM25" in done.stdout
    flags += ["--config.student.query_prompt=gene ", "--config.evaluation.bm25=off"]
    off = command.inside(*flags)
    assert off.status == 0, off.stderr[-3000:]
    assert "BM25" not in off.stdout


def test_the_overlap_is_counted_once_and_kept_for_other_models(runs, tmp_path, monkeypatch):
    project, run, output, alone = runs
    from nvret_jax.evaluation.overlap import overlap
    from nvret_jax.pipeline import overlaps

    data = load_dataset(f"beir:{project / 'data'}")
    expected = overlap(data, data)
    (found,) = json.loads((run / "evaluation" / "data.overlap.json").read_text())
    assert Overlap.of(found) == expected
    assert scores_of(run)["overlap"] == [expected.counts()]
    assert f"evaluate  {expected.line()}" in output
    assert html.escape(expected.sentence()) in (run / "report.html").read_text()
    assert not (alone / "evaluation" / "data.overlap.json").exists()  # nothing is trained
    workdir = tmp_path / "w"
    shutil.copytree(run, workdir)
    monkeypatch.setattr(overlaps, "overlap", None)  # cannot be counted again
    again = command.inside(*arguments(project, workdir), "--config.export.max_length=11")
    assert again.status == 0, again.stderr[-3000:]
    assert "making evaluation/data.json" in again.stdout
    assert "making evaluation/data.overlap.json" not in again.stdout
    assert f"evaluate  {expected.line()}" in again.stdout


def test_scores_of_each_query_before_and_after_are_kept(runs):
    _, run, _, alone = runs
    found = scores_of(run)
    for query, scores in scores_of(alone)["per_query"].items():
        assert found["per_query_before"][query] == pytest.approx(scores, abs=1e-6)
    assert found["per_query_before"].keys() == found["per_query"].keys()


def test_both_lengths_and_all_cuts_are_stated(runs):
    project, run, output, _ = runs
    found = scores_of(run)
    assert "before:" in found["measured"]
    assert "texts cut at 40 tokens; after: as exported, texts cut at 12 tokens" in output
    data = load_dataset(f"beir:{project / 'data'}")
    # One token a word in this vocabulary, [CLS] and [SEP] beside them, and the prompt.
    words = [len(text.split()) for text in data.corpus.texts]
    expected = {"before": 0, "after": sum(n + 1 + 2 > 12 for n in words)}
    assert 0 < expected["after"] < len(words)
    for when, cut in expected.items():
        (of_passages,) = (c for c in found["truncated"][when] if c["table"] == "passages")
        assert (of_passages["cut"], of_passages["texts"]) == (cut, len(words))
        assert of_passages["share"] == pytest.approx(cut / len(words))
    # A query has four words: seven tokens with its prompt, and training keeps six.
    assert "student: data queries-train, 100 % longer than 6 tokens and cut (24 of 24)" in output
    at = "student: data passages, "
    line = next(line for line in output.splitlines() if at in line)
    assert f"({expected['after']} of {len(words)})" in line
    assert output.index(line) < output.index("making evaluation/")
    (shown,) = [b.text for b in doc_blocks.blocks("docs/evaluation.md") if "texts  " in b.text]
    for line in shown.splitlines():
        assert re.search(doc_blocks.pattern(line), output), line
    page = (run / "report.html").read_text()
    assert "longer than" in page
    assert f"{expected['after']} of {len(words)}" in page


def test_the_report_shows_queries_data_commands_and_how_to_load(runs):
    _, run, _, _ = runs
    page = (run / "report.html").read_text()
    text = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))
    found = scores_of(run)
    deltas = [
        values["ndcg_cut_10"] - found["per_query_before"][query]["ndcg_cut_10"]
        for query, values in found["per_query"].items()
    ]
    counts = [sum(d > 1e-9 for d in deltas), sum(abs(d) <= 1e-9 for d in deltas)]
    counts.append(sum(d < -1e-9 for d in deltas))
    assert "{} better {} equal {} worse".format(*counts) in text
    assert f'SentenceTransformer("{run}/export")' in text
    assert f'Encoder.from_pretrained("{run}/export")' in text
    assert 'prompt_name="query"' in text
    assert "data train training 96 24 1.21" in text
    assert "data test test 96 10 1.20" in text
    assert "python -m nvret_jax.main" in text
    assert f"--workdir={run}" in text
    lines = provenance.read(run)
    stages = [line["stage"] for line in lines]
    assert stages == ["embed", "search", "mine", "train", "evaluate", "export", "report"]
    assert f"train {report._duration(lines[3]['seconds'])}" in text
    assert f"nvret_jax {provenance.versions()['nvret_jax']}" in text


def test_exports_keep_the_length_that_is_asked_for(runs, tmp_path):
    project, run, _, _ = runs
    workdir = tmp_path / "w"
    shutil.copytree(run, workdir)
    flags = [command.CONFIG, f"--workdir={workdir}", *command.flags_of(project)]
    changed = [
        "--config.student.query_length=6",
        "--config.student.passage_length=12",
        "--config.student.query_prompt=gene ",
        "--config.student.passage_prompt=cell ",
        "--config.student.pooling=cls",
    ]
    done = command.inside(*flags, *changed, "--config.export.max_length=30")
    assert done.status == 0, done.stderr[-3000:]
    assert "train     up to date" in done.stdout
    assert "after: as exported, texts cut at 30 tokens" in done.stdout
    assert Encoder.from_pretrained(str(workdir / "export")).spec.max_length == 30
    error = command.inside(*flags, *changed, "--config.export.max_length=41").error
    assert "export.max_length=41" in error
    assert "at most 40 tokens" in error


def test_python_is_warned_once_with_a_number(runs, caplog):
    project = runs[0]
    encoder = Encoder.from_pretrained(str(project / "model"), max_length=6)
    texts = ["wing", "wing flow heat shock", "wing flow heat shock layer", "layer " * 9]
    with caplog.at_level("WARNING"):
        encoder.encode(texts)
        encoder.encode(texts)
    cuts = [r.getMessage() for r in caplog.records if "were cut" in r.getMessage()]
    assert cuts == [
        "2 of 4 passages (50.0 %) are longer than 6 tokens and were cut; max_length can be up to 40"
    ]


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.42, "42 %"), (0.004, "0.4 %"), (0.9996, "100.0 %")],
)
def test_shares_hide_nothing(share, words):
    assert truncation.percent(share) == words


def test_a_run_ends_with_its_paths_and_what_comes_next(runs):
    project, run, output, _ = runs
    last = output.splitlines()[-8:]
    assert re.match(r"dev       (training did not help on dev: |dev )nDCG@10 0", last.pop(0))
    assert last[0].startswith("finished  in ")
    assert last[1] == f"export    {run}/export, loaded by nvret_jax and sentence-transformers"
    assert last[2] == f"report    {run}/report.html, for a browser"
    # The next two commands, which their parser takes.
    for line, name in ((last[4], "search"), (last[6], "evaluate")):
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "nvret_jax", name]
        assert parser.parse(name, commands.load(name), words[4:]).words[0] == str(run)
    assert last[4].endswith(f" beir:{project}/data --web")
    assert "compiling the first step" in output[: output.index("making evaluation/")]
    flags = [command.CONFIG, f"--workdir={run.parent / 'part'}", *command.flags_of(project)]
    some = command.inside(*flags, "--stages=embed,search").stdout
    assert "next      the same command with --stages=mine,train,evaluate,export,report" in some
    # A dry run counts, too.
    planned = command.inside(*flags, "--dry_run", "--config.teacher.passage_length=6").stdout
    assert "texts     teacher: data passages," in planned
    assert "finished" not in planned
    assert "longer than 6 tokens and cut" in planned


@pytest.mark.parametrize(
    ("seconds", "words"), [(41.6, "42 s"), (463, "7 min 43 s"), (11100, "3 h 5 min")]
)
def test_durations_for_people(seconds, words):
    assert closing.duration(seconds) == words

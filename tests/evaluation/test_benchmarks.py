"""Published lists of tasks: what is in them, what is averaged, what a query leaves out."""

from __future__ import annotations

import json

import pytest
import tiny_project

import nvret_jax as nv
from nvret_jax.data.bright import read_bright
from nvret_jax.evaluation import benchmarks


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    tiny_project.make(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(project):
    return nv.Encoder.from_pretrained(project / "model", normalize=True)


def named(benchmark):
    return [
        name
        for entry in benchmarks.BENCHMARKS[benchmark]
        for name in ([entry] if isinstance(entry, str) else entry[1])
    ]


def test_the_lists_are_whole():
    sizes = {name: len(entries) for name, entries in benchmarks.BENCHMARKS.items()}
    assert sizes == {"BEIR-15": 15, "NanoBEIR-13": 13, "BRIGHT": 12, "MTEB(eng, v2)": 10}
    assert len(named("BEIR-15")) == 14 + 12
    known = benchmarks.tasks()
    assert {name for one in benchmarks.BENCHMARKS for name in named(one)} == set(known)
    for task in known.values():
        assert len(task.revision) == 40
        assert task.split in ("test", "dev", "train", "standard")
        assert bool(task.part) == task.name.startswith("Bright")
    assert known["MSMARCO"].split == "dev"
    assert known["ArguAna"].own
    assert not known["SciFact"].own
    assert known["SciFact"].source.startswith("hf:mteb/scifact?revision=")


@pytest.mark.parity
def test_they_are_those_of_mteb():
    mteb = pytest.importorskip("mteb")
    for name, task in benchmarks.tasks().items():
        theirs = mteb.get_task(name)
        meta = theirs.metadata
        assert (task.data, task.revision) == (meta.dataset["path"], meta.dataset["revision"]), name
        assert task.own == theirs.ignore_identical_ids, name
        assert task.split in meta.eval_splits, name
        prompt = meta.prompt or ""
        assert task.prompt == (prompt if isinstance(prompt, str) else prompt.get("query", "")), name
    for ours, name in (("NanoBEIR-13", "NanoBEIR"), ("MTEB(eng, v2)", "MTEB(eng, v2)")):
        tasks = mteb.get_benchmark(name).tasks
        wanted = {task.metadata.name for task in tasks if task.metadata.type == "Retrieval"}
        assert set(named(ours)) == wanted, name
    wanted = {task.metadata.name for task in mteb.get_benchmark("BEIR").tasks}
    entries = benchmarks.BENCHMARKS["BEIR-15"]
    assert {one if isinstance(one, str) else one[0] for one in entries} == wanted


def test_a_group_is_one_score(project, encoder):
    data = nv.load_dataset(project / "data")
    forums = named("BEIR-15")[7:19]
    assert all(name.startswith("CQADupstack") for name in forums)
    few = nv.load_dataset(project / "data", splits="dev")
    other = nv.Dataset("dev", few.corpus, few.queries, {"test": few.qrels["dev"]}, few.fingerprint)
    sources = {name: data for name in forums} | {forums[0]: other, "SciFact": data}
    found = benchmarks.evaluate(
        encoder, "BEIR-15", only=["CQADupstackRetrieval", "SciFact"], sources=sources
    )
    one, two = (
        nv.evaluate(encoder, each, "test", exclude_self=False).metrics["map"]
        for each in (other, data)
    )
    assert one != two
    assert found.scores["CQADupstackRetrieval"]["map"] == pytest.approx((one + 11 * two) / 12)
    assert found.mean["map"] == pytest.approx(((one + 11 * two) / 12 + two) / 2)
    assert len(found.evaluations) == 13
    assert repr(found).startswith("Benchmark(BEIR-15, 2 tasks: nDCG@10 0.")


def test_a_task_has_its_prompt(project, encoder, monkeypatch):
    seen = []

    def evaluate(encoder, *args, **how):
        seen.append((encoder.spec.query_prompt, encoder.spec.passage_prompt))
        return nv.evaluate(encoder, *args, **how)

    monkeypatch.setattr(benchmarks.retrieval, "evaluate", evaluate)
    task = benchmarks.tasks()["SciFact"]
    how = {"only": ["SciFact"], "sources": {"SciFact": f"beir:{project / 'data'}"}}
    benchmarks.evaluate(encoder, "BEIR-15", **how)
    benchmarks.evaluate(encoder, "BEIR-15", instruction="I: {instruction}\nQ: ", **how)
    benchmarks.evaluate(encoder, "BEIR-15", prompts={"SciFact": "the "}, **how)
    assert seen == [("", ""), (f"I: {task.prompt}\nQ: ", ""), ("the ", "")]


def bright(folder):
    """A folder in the layout of BRIGHT's repository, of two domains."""
    texts = {"d1": "the wing", "d2": "heat flow", "d3": "the wing of a plate", "d4": "cell gene"}
    rows = [
        {"id": "q1", "query": "the wing", "gold_ids": ["d3"], "excluded_ids": ["d1", "gone"]},
        {"id": "q2", "query": "heat", "gold_ids": ["d2"], "excluded_ids": ["N/A"]},
    ]
    for config, made in (
        ("documents", [{"id": one, "content": text} for one, text in texts.items()]),
        ("examples", rows),
    ):
        for domain in ("biology", "pony"):
            path = folder / config / f"{domain}-00000-of-00001.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
    files = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {d}\n    path: {config}/{d}-*\n" for d in ("biology", "pony"))
        for config in ("documents", "examples")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")


def test_bright_leaves_passages_out_query_by_query(tmp_path, encoder):
    bright(tmp_path)
    from etils import epath

    data, excluded = read_bright(epath.Path(tmp_path), "pony")
    assert data.qrels == {"standard": {"q1": {"d3": 1}, "q2": {"d2": 1}}}
    assert excluded == {"q1": ["d1"]}
    whole = nv.evaluate(encoder, data, "standard")
    assert whole.run()["q1"].keys() == {"d1", "d2", "d3", "d4"}
    name = "BrightPonyRetrieval"
    found = benchmarks.evaluate(encoder, "BRIGHT", only=[name], sources={name: str(tmp_path)})
    run = found.evaluations[name].run()
    assert run["q1"].keys() == {"d2", "d3", "d4"}
    assert run["q2"].keys() == {"d1", "d2", "d3", "d4"}
    with pytest.raises(nv.InputError, match="no documents of the domain 'maths'"):
        read_bright(epath.Path(tmp_path), "maths")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"benchmark": "BEIR"}, "benchmark='BEIR': expected one of BEIR-15"),
        ({"only": ["SciFacts"]}, "BEIR-15 has no task 'SciFacts'"),
        ({"instruction": "Q: "}, "lacks '{instruction}'"),
        ({"only": ["SciFact"]}, "not in the local Hugging Face cache"),
    ],
)
def test_what_cannot_be_is_one_line(encoder, how, words):
    with pytest.raises(nv.InputError) as error:
        benchmarks.evaluate(encoder, **{"benchmark": "BEIR-15", **how})
    assert words in str(error.value)


def test_excluded_passages_must_be_there(project, encoder):
    data = nv.load_dataset(project / "data")
    with pytest.raises(
        nv.InputError, match="exclude: query 'q31' has 'nowhere', which is not the id"
    ):
        nv.evaluate(encoder, data, exclude={"q31": ["nowhere"]})
    with pytest.raises(nv.InputError, match="expected a dict of query id"):
        nv.evaluate(encoder, data, exclude=[["p1"]])

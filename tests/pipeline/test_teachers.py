"""Every kind of teacher, alone and together, verdicts and exclusions, through the real command."""

import json
import re

import command
import numpy as np
import pytest
import tiny_cross_encoders
import tiny_project

from nvret_jax.data import tables
from nvret_jax.data.load import load_dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.bm25 import Bm25Ranker

CONFIG = """
from nvret_jax.config import add_teacher, base
def get_config(arg=''):
    config = base()
    add_teacher(config, 'second', {model!r}, passage_length=12, query_length=12)
    add_teacher(config, 'words', 'bm25:')
    add_teacher(config, 'chance', 'random:')
    add_teacher(config, 'theirs', {vectors!r})
    add_teacher(config, 'listed', {run!r})
    return config
"""


@pytest.fixture(scope="module")
def project(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    tiny_project.make(folder)
    rng = np.random.default_rng(0)
    (folder / "vectors").mkdir()
    order = rng.permutation(tiny_project.PASSAGES)
    passages_nd = rng.normal(size=(tiny_project.PASSAGES, 6)).astype(np.float32)
    queries_qd = rng.normal(size=(tiny_project.QUERIES, 6)).astype(np.float32)
    np.save(folder / "vectors" / "passages.npy", passages_nd[order])
    (folder / "vectors" / "passages.ids.txt").write_text("".join(f"p{i}\n" for i in order))
    np.savez(
        folder / "vectors" / "queries.npz",
        ids=np.array([f"q{i}" for i in range(tiny_project.QUERIES)]),
        vectors=queries_qd,
    )
    lines = []
    for q in range(24):
        rows = rng.choice(tiny_project.PASSAGES, 12, replace=False)
        lines += [f"q{q} Q0 p{p} {rank} {1 - 0.05 * rank:.3f} x" for rank, p in enumerate(rows, 1)]
    (folder / "teacher.run").write_text("\n".join(lines) + "\n")
    text = CONFIG.format(
        model=str(folder / "model"),
        vectors=f"vectors:{folder / 'vectors'}",
        run=f"run:{folder / 'teacher.run'}",
    )
    (folder / "config.py").write_text(text)
    return folder


def mined(project, workdir, *flags, stages="embed,search,mine"):
    """Runs the command; the table of negatives and the counts beside it."""
    argv = [
        f"--config={project / 'config.py'}",
        f"--workdir={workdir}",
        *command.flags_of(project),
        f"--stages={stages}",
        *flags,
    ]
    result = command.inside(*argv)
    assert result.status == 0, result.stderr[-2000:]
    data = load_dataset(f"beir:{project / 'data'}")
    negatives = Negatives.read(workdir / "negatives" / "train.parquet", data.queries, data.corpus)
    counts = json.loads((workdir / "negatives" / "train.counts.json").read_text())
    return negatives, counts, data, result


@pytest.mark.parametrize("name", ["words", "chance", "theirs", "listed"])
def test_each_kind_of_teacher_mines_alone(name, project, tmp_path):
    negatives, counts, data, _ = mined(
        project,
        tmp_path / "w",
        f"--config.mining.teachers=('{name}',)",
        "--config.mining.rule=naive",
    )
    assert counts["given"] == {name: len(negatives.negative_rows.values)}
    assert (negatives.negative_rows.counts == 4).all()
    assert not (tmp_path / "w" / "embeddings").exists()  # none of them is one of our encoders
    if name == "theirs":
        with np.load(project / "vectors" / "queries.npz") as file:
            query = file["vectors"][negatives.query_rows[0]]
        ids = (project / "vectors" / "passages.ids.txt").read_text().split()
        passages_nd = np.load(project / "vectors" / "passages.npy")
        passage = passages_nd[ids.index(data.corpus.ids[negatives.negative_rows[0][0]])]
        cosine = query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
        assert negatives.negative_scores[0][0] == pytest.approx(cosine, abs=1e-6)
    if name == "listed":
        listed = dict.fromkeys((project / "teacher.run").read_text().splitlines())
        first = data.corpus.ids[negatives.negative_rows[0][0]]
        assert any(line.startswith(f"q0 Q0 {first} ") for line in listed)


@pytest.mark.parametrize("ensemble", ["cross", "intra", "union"])
def test_teachers_together_keep_their_names_and_overlaps(ensemble, project, tmp_path):
    names = ("teacher", "second", "words", "chance")
    negatives, counts, _, result = mined(
        project,
        tmp_path / "w",
        f"--config.mining.teachers={names}",
        f"--config.mining.ensemble={ensemble}",
    )
    assert set(counts["teachers"]) == set(names)
    assert np.shape(counts["overlap"]) == (4, 4)
    assert "overlap of negatives (Jaccard)" in result.stdout
    assert sum(counts["given"].values()) == len(negatives.negative_rows.values)
    assert set(negatives.teachers) <= set(names)
    below = negatives.negative_scores.values < negatives.negative_ceilings.values
    assert below.all()
    if ensemble == "intra":
        first = np.array(negatives.teachers)[negatives.negative_teachers.padded(-1)[:, :2]]
        assert (first == names[:2]).all()


def test_another_teacher_makes_only_its_own_candidates_again(project, tmp_path):
    mined(project, tmp_path / "w", "--config.mining.teachers=('teacher','words')")
    before = (tmp_path / "w" / "candidates" / "teacher.parquet").stat().st_mtime_ns
    *_, result = mined(project, tmp_path / "w", "--config.mining.teachers=('teacher','chance')")
    assert "making candidates/chance.parquet" in result.stdout
    assert "candidates/teacher.parquet" not in result.stdout
    assert (tmp_path / "w" / "candidates" / "teacher.parquet").stat().st_mtime_ns == before


def test_every_positive_its_own_anchor_is_a_row_for_each(project, tmp_path):
    negatives, counts, data, _ = mined(
        project, tmp_path / "w", "--config.mining.anchor=own", stages="embed,search,mine,train"
    )
    judged = data.positives("train")
    assert counts["tasks"] == len(negatives) == sum(map(len, judged.values())) > counts["queries"]
    assert (negatives.positive_rows.counts == 1).all()
    for r, row in enumerate(negatives.query_rows):
        ids = [data.corpus.ids[p] for p in negatives.judged_rows[r]]
        assert sorted(ids) == sorted(judged[data.queries.ids[row]])
    assert list((tmp_path / "w" / "checkpoints").iterdir())


def test_verdicts_promote_and_drop(project, tmp_path):
    flags = ("--config.mining.teachers=('chance',)", "--config.mining.rule=naive")
    plain, _, data, _ = mined(project, tmp_path / "w", *flags)
    query = data.queries.ids[plain.query_rows[0]]
    first, second, third, _ = (data.corpus.ids[row] for row in plain.negative_rows[0])
    lines = [(first, "positive"), (second, "drop"), (third, "keep")]
    file = tmp_path / "verdicts.jsonl"
    rows = [{"query_id": query, "passage_id": p, "verdict": v} for p, v in lines]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged, counts, _, result = mined(
        project, tmp_path / "w", *flags, f"--config.mining.verdicts={file}"
    )
    assert "mining.verdicts '' → " in result.stdout
    names = [data.corpus.ids[row] for row in judged.negative_rows[0]]
    assert not {first, second} & set(names)
    assert names[0] == third  # what was dropped is made up for from further down
    assert len(names) == 4
    assert first in [data.corpus.ids[row] for row in judged.positive_rows[0]]
    assert first in [data.corpus.ids[row] for row in judged.judged_rows[0]]
    assert judged.positive_scores[0][-1] < 1  # the teacher's own score of it
    assert counts["verdicts"]["promoted"] == counts["verdicts"]["dropped"] == 1
    assert judged.negative_rows[1].tolist() == plain.negative_rows[1].tolist()


def test_a_verdict_can_drop_its_query(project, tmp_path):
    flags = ("--config.mining.teachers=('chance',)", "--config.mining.rule=naive")
    plain, _, data, _ = mined(project, tmp_path / "w", *flags)
    query, passage = plain.query_rows[3], plain.negative_rows[3][0]
    file = tmp_path / "verdicts.csv"
    file.write_text(
        f"query_id,passage_id,verdict\n{data.queries.ids[query]},{data.corpus.ids[passage]},positive\n"
    )
    judged, counts, _, _ = mined(
        project,
        tmp_path / "w",
        *flags,
        f"--config.mining.verdicts={file}",
        "--config.mining.verdict_mode=remove_query",
    )
    assert judged.query_rows.tolist() == [row for row in plain.query_rows if row != query]
    assert counts["verdicts"]["queries_dropped"] == 1


@pytest.mark.parametrize("order", [pytest.param("teacher", marks=pytest.mark.slow), "rescored"])
def test_a_cross_encoder_decides_on_its_own_scale(order, project, tmp_path):
    model = tiny_cross_encoders.write(tmp_path / "pairs")
    flags = (
        f"--config.rescorer.model={model}",
        f"--config.rescorer.order={order}",
        "--config.rescorer.depth=30",
        "--config.mining.rule=margin_pos",
        "--config.mining.margin=0.01",
        "--config.mining.num_negatives=3",
    )
    negatives, _, data, result = mined(project, tmp_path / "w", *flags)
    scorer = CrossEncoder.from_pretrained(str(model))
    teacher = Candidates.read(
        tmp_path / "w" / "candidates" / "teacher.parquet", data.queries, data.corpus
    )
    assert "pairs" in result.stdout
    for r, row in enumerate(negatives.query_rows):
        query = data.queries.texts[row]
        own = negatives.positive_rows[r]
        positives = scorer.score([(query, data.corpus.texts[p]) for p in own])
        np.testing.assert_allclose(negatives.positive_scores[r], positives, atol=1e-5)
        ceiling = positives.min() - 0.01
        listed = [p for p in teacher.passage_rows[r][:30] if p not in own]
        scores = scorer.score([(query, data.corpus.texts[p]) for p in listed])
        allowed = [(p, s) for p, s in zip(listed, scores, strict=True) if s < ceiling]
        if order == "rescored":
            allowed.sort(key=lambda pair: (-pair[1], pair[0]))
        near = any(abs(s - ceiling) < 1e-4 for s in scores)
        if not near:
            assert negatives.negative_rows[r].tolist() == [p for p, _ in allowed[:3]]
    made = sorted(path.name for path in (tmp_path / "w" / "candidates").iterdir())
    assert made == ["teacher.parquet", "teacher.rescored.parquet"]


def test_distillation_fits_the_mean_of_several_teachers(project, tmp_path):
    model = tiny_cross_encoders.write(tmp_path / "pairs")
    flags = (
        "--config.mining.rule=naive",
        "--config.mining.num_distilled=3",
        "--config.train.loss.distillation=kl",
        "--config.train.num_distilled=3",
        "--config.data.dev_split=",
        f"--config.rescorer.model={model}",
        "--config.rescorer.order=unchanged",
    )
    plain, _, _, _ = mined(project, tmp_path / "w", *flags[:2])
    # Those that mined and those that did not: a cross-encoder, vectors from elsewhere.
    names = ("theirs", "teacher", "rescorer", "words")
    negatives, counts, data, result = mined(
        project,
        tmp_path / "w",
        *flags,
        f"--config.mining.targets={names}",
        stages="embed,search,mine,train",
    )
    np.testing.assert_array_equal(plain.negative_rows.values, negatives.negative_rows.values)
    np.testing.assert_array_equal(plain.negative_scores.values, negatives.negative_scores.values)
    factors = {one["teacher"]: one["factor"] for one in counts["targets"]}
    assert tuple(factors) == names
    assert factors["words"] > 0
    counting = sum(factor > 0 for factor in factors.values())  # the others are left out
    scorer = CrossEncoder.from_pretrained(str(model))
    words = Bm25Ranker([data.queries.texts[q] for q in negatives.query_rows], data.corpus.texts)
    with np.load(project / "vectors" / "queries.npz") as file:
        queries_qd = file["vectors"]
    ids = (project / "vectors" / "passages.ids.txt").read_text().split()
    passages_nd = np.load(project / "vectors" / "passages.npy")
    levels: dict[int, float] = {}
    for r, row in enumerate(negatives.query_rows):
        query = queries_qd[int(data.queries.ids[row][1:])]
        for side in ("negative", "distilled"):
            passages = getattr(negatives, f"{side}_rows")[r]
            vectors = passages_nd[[ids.index(data.corpus.ids[p]) for p in passages]]
            length = np.linalg.norm(query) * np.linalg.norm(vectors, axis=1)
            texts = [(data.queries.texts[row], data.corpus.texts[p]) for p in passages]
            one = Ragged.from_rows([passages], np.int32)
            expected = (
                factors["theirs"] * (vectors @ query) / length
                + factors["teacher"] * getattr(negatives, f"{side}_scores")[r]
                + factors["rescorer"] * scorer.score(texts)
                + factors["words"] * words.score(np.array([r]), one)
            )
            found = getattr(negatives, f"{side}_targets")[r]
            level = (expected / counting - found)[0]  # of the row's positives
            levels.setdefault(r, level)
            np.testing.assert_allclose(found, expected / counting - levels[r], rtol=1e-4, atol=1e-4)
    assert "not cosines: loss.teacher_temperature 1" in result.stdout
    assert tiny_project.metrics(tmp_path / "w")[0]["distillation"] > 0
    # The same again is finished; another factor is another table.
    again = mined(project, tmp_path / "w", *flags, f"--config.mining.targets={names}")[-1]
    assert "target" not in again.stdout
    fewer = mined(project, tmp_path / "w", *flags[:5], "--config.mining.targets=('words',)")[-1]
    assert re.search(r"^mine +making .*\(mining\.targets \[", fewer.stdout, re.MULTILINE)


def test_near_copies_are_those_of_a_teacher_that_mines(project, tmp_path):
    model = tiny_cross_encoders.write(tmp_path / "pairs")
    flags = ("--config.mining.exclude.near_copy=0.9", f"--config.rescorer.model={model}")
    # One that scores for distillation alone does not decide what is mined.
    words = ("--config.mining.teachers=('words',)", "--config.mining.targets=('teacher',)")
    argv = (f"--config={project / 'config.py'}", *command.flags_of(project), *flags, *words)
    result = command.inside(*argv, f"--workdir={tmp_path / 'no'}", "--stages=embed,search,mine")
    assert result.status == 2
    assert "near_copy=0.9 needs a teacher that is an encoder" in result.stderr
    # Another one that mines is another reason to rescore.
    both = [f"--config.mining.teachers=('words','{name}')" for name in ("second", "teacher")]
    rows = []
    for workdir, teachers in (("w", both[0]), ("w", both[1]), ("fresh", both[1])):
        mined(project, tmp_path / workdir, *flags, teachers)
        data = load_dataset(f"beir:{project / 'data'}")
        path = tmp_path / workdir / "candidates" / "words.rescored.parquet"
        found = Candidates.read(path, data.queries, data.corpus)
        rows.append([one.tolist() for one in found.passage_rows])
    assert rows[1] == rows[2]
    assert rows[0] != rows[1]


def test_a_rule_without_ceiling_asks_no_cross_encoder(project, tmp_path):
    model = tiny_cross_encoders.write(tmp_path / "pairs")
    flags = (f"--config.rescorer.model={model}", "--config.mining.rule=shifted")
    _, _, _, result = mined(project, tmp_path / "w", *flags)
    assert "rescored" not in result.stdout


def test_copies_of_a_positive_are_never_negatives(project, tmp_path):
    folder = tmp_path / "copy"
    tiny_project.make(folder)
    corpus = folder / "data" / "corpus.jsonl"
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    records[50]["text"] = records[0]["text"].upper() + "!"  # p0 is q0's positive
    records[51]["text"] = json.loads((folder / "data" / "queries.jsonl").open().readline())["text"]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.py").write_text((project / "config.py").read_text())
    flags = (
        "--config.mining.teachers=('words',)",
        "--config.mining.rule=naive",
        "--config.search.depth=96",
    )
    negatives, counts, _, _ = mined(folder, tmp_path / "w", *flags)
    assert not {50, 51} & set(negatives.negative_rows[0].tolist())
    assert counts["excluded"]["same_text"] >= 1
    assert counts["excluded"]["own_text"] >= 1
    off = (
        "--config.mining.exclude.own_text=off",
        "--config.mining.exclude.same_text=false",
        "--config.mining.num_negatives=90",
    )
    negatives, _, _, _ = mined(folder, tmp_path / "w", *flags, *off)
    assert {50, 51} <= set(negatives.negative_rows[0].tolist())


def test_the_report_tells_of_several_teachers(project, tmp_path):
    flags = ("--config.mining.teachers=('teacher','words')",)
    stages = "embed,search,mine,train,evaluate,report"
    mined(project, tmp_path / "w", *flags, stages=stages)
    page = (tmp_path / "w" / "report.html").read_text()
    assert "bm25:" in page
    table = tables.read_table(tmp_path / "w" / "negatives" / "train.parquet", ["negative_teachers"])
    assert {t for row in table["negative_teachers"].to_pylist() for t in row} == {
        "teacher",
        "words",
    }

"""The stage audit through the real command: the CSV, the table, the report, and values 'auto'."""

import csv
import json

import command
import pytest
import tiny_project

from nvret_jax.mining.audit.audit import COLUMNS, read_csv

AUDIT = f"--config={tiny_project.ROOT / 'configs' / 'audit.py'}"


@pytest.fixture(scope="module")
def project(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    tiny_project.make(folder)
    return folder


@pytest.fixture(scope="module")
def audited(project):
    workdir = project / "audit"
    result = command.inside(
        AUDIT,
        f"--workdir={workdir}",
        f"--config.data.train=beir:{project / 'data'}",
        f"--config.teacher.model={project / 'model'}",
        f"--config.student.model={project / 'model'}",
        "--config.teacher.passage_length=24",
        "--config.teacher.query_length=16",
        "--config.audit.percents=(0.8,0.95)",
        "--config.audit.resamples=50",
        "--config.distributed.mode=off",
    )
    assert result.status == 0, result.stderr[-2000:]
    return workdir, result


def test_the_csv_has_the_promised_columns_and_a_row_a_rule(audited):
    workdir, result = audited
    with (workdir / "audit.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[:9] == (
        "dataset,teacher,rule,value,false_negative_share,low,high,hardness,fill".split(",")
    )
    assert [row[2:4] for row in rows if row[2] == "perc_pos"] == [
        ["perc_pos", "0.8"],
        ["perc_pos", "0.95"],
    ]
    assert rows[0][:4] == ["data", "teacher", "naive", ""]
    assert {row[17] for row in rows} == {"5"}  # every fifth query has two positives
    assert "False negatives by rule" in result.stdout
    assert "nan" not in result.stdout
    assert tuple(header) == COLUMNS
    assert len(read_csv(workdir / "audit.csv")) == len(rows)


def test_the_report_shows_it(audited):
    page = (audited[0] / "report.html").read_text()
    assert '<h2 id="audit">' in page
    assert "perc_pos 0.95" in page
    assert page.count("<svg") >= 1
    assert "nan" not in page.split("</style>")[1].lower().replace("nansen", "")


def test_another_audit_value_makes_the_audit_again_and_nothing_before_it(audited, project):
    workdir, _ = audited
    before = (workdir / "audit.csv").read_text()
    result = command.inside(
        AUDIT,
        f"--workdir={workdir}",
        f"--config.data.train=beir:{project / 'data'}",
        f"--config.teacher.model={project / 'model'}",
        f"--config.student.model={project / 'model'}",
        "--config.teacher.passage_length=24",
        "--config.teacher.query_length=16",
        "--config.audit.percents=(0.7,)",
        "--config.audit.resamples=50",
        "--config.distributed.mode=off",
    )
    assert result.status == 0, result.stderr[-2000:]
    assert "search    up to date" in result.stdout
    assert "audit.percents [" in result.stdout
    assert "→ [0.7]" in result.stdout
    assert (workdir / "audit.csv").read_text() != before


def test_a_value_is_calibrated_and_written_down(project, tmp_path, monkeypatch):
    monkeypatch.setattr("nvret_jax.mining.audit.calibrate.ENOUGH", 4)
    workdir = tmp_path / "w"
    result = command.inside(
        command.CONFIG,
        f"--workdir={workdir}",
        *command.flags_of(project),
        "--stages=embed,search,mine",
        "--config.mining.percent=auto",
        "--config.mining.calibration.target=0.9",
    )
    assert result.status == 0, result.stderr[-2000:]
    counts = json.loads((workdir / "negatives" / "train.counts.json").read_text())
    (record,) = counts["calibration"]
    assert record["method"] == "labels"
    assert record["target"] == 0.9
    assert f"teacher: percent {record['value']:g}" in result.stdout

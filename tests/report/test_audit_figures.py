"""The audit's chart: every point that was measured, in words too, and one prefix a chart."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from nvret_jax.mining.audit.audit import Row
from nvret_jax.report import audit_figures


def row(rule, value, share, hardness, dataset="toy", teacher="t", slots=100):
    numbers = {
        field.name: 0.0 for field in dataclasses.fields(Row) if field.type in ("float", float)
    }
    return Row(
        **numbers
        | {
            "dataset": dataset,
            "teacher": teacher,
            "rule": rule,
            "value": value,
            "false_negative_share": share,
            "low": share - 0.02,
            "high": share + 0.02,
            "hardness": hardness,
            "queries": 25,
            "slots": slots,
            "false_negatives": round(share * slots),
        }
    )


ROWS = [
    row("naive", "", 0.4, 1.2),
    row("shifted", "10", 0.2, 1.1),
    row("perc_pos", "0.9", 0.05, 0.88),
    row("perc_pos", "0.95", 0.08, 0.92),
    row("shifted+perc_pos", "5+0.95", 0.07, 0.9),
]


def texts(svg):
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter()]


def test_both_drawings_name_every_rule_and_value():
    chart = audit_figures.false_negatives(ROWS)
    for svg in (chart.wide, chart.narrow):
        found = texts(svg)
        assert {r.rule for r in ROWS} <= set(found)
        assert {"10", "0.9", "0.95", "5+0.95"} <= set(found)


def test_the_description_has_every_number():
    words = audit_figures.false_negatives(ROWS).description
    assert "naive: 40.0 % (38.0 to 42.0 %) at hardness 1.20" in words
    assert "perc_pos 0.95: 8.0 % (6.0 to 10.0 %) at hardness 0.92" in words


def test_colours_are_the_pages_and_nothing_else_is_coloured():
    svg = audit_figures.false_negatives(ROWS).wide
    assert "var(--positive)" in svg
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) == set()


def test_each_data_set_and_teacher_has_a_chart_with_ids_of_its_own():
    rows = [*ROWS, row("naive", "", 0.3, 1.0, teacher="u"), row("naive", "", 0.2, 1, "other")]
    made = audit_figures.charts(rows)
    assert [title for title, _ in made] == ["toy, teacher t", "toy, teacher u", "other, teacher t"]
    ids = [
        i for _, c in made for svg in (c.wide, c.narrow) for i in re.findall(r'\bid="(.+?)"', svg)
    ]
    assert len(ids) == len(set(ids))
    assert "perc_pos" not in made[1][1].description


def test_the_same_rows_give_the_same_bytes():
    assert audit_figures.false_negatives(ROWS) == audit_figures.false_negatives(ROWS)


@pytest.mark.parametrize(
    "bad", [row("abs", "0.1", 0.5, 1, slots=0), row("abs", "0.1", 0.5, math.nan)]
)
def test_a_rule_that_mined_nothing_is_left_out(bad):
    chart = audit_figures.false_negatives([*ROWS, bad])
    assert "abs" not in chart.description
    assert "abs" not in texts(chart.wide)


def test_no_rows_at_all_still_draw():
    assert "nothing was mined" in audit_figures.false_negatives([]).description

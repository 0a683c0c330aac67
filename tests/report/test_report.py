"""The page: nothing leaves it, nothing runs in it, and every number is the one given."""

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from nvret_jax.evaluation.comparison import Scores
from nvret_jax.report import figures, report

HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' & <img src=x onerror=alert(2)> {{ 7*7 }}"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes, ids and text of a page; fails on tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.attributes, self.text, self.open = [], [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def full_data(text="an ordinary passage"):
    rng = np.random.default_rng(0)
    long = f"{text} " + "word " * 100 + "THE-END"
    example = report.Example(
        query_id=f"q-{text}",
        query=text,
        positives=[report.Passage("p0", long, 0.811, 1)],
        negatives=[
            report.Passage("p1", text, 0.702, 3, teacher=text),
            report.Passage("p2", "", 0.61, 9),
        ],
        dropped=[report.Passage("p3", text, 0.795, 2, why=f"above the ceiling {text}")],
        ceiling=0.77,
    )
    before = {"ndcg_cut_10": 0.5, "recip_rank_10": 0.45, "map": 0.4}
    after = {"ndcg_cut_10": 0.5313, "recip_rank_10": 0.45, "map": 0.3911}
    return report.ReportData(
        title=f"run {text}",
        lead=text,
        scores=[
            Scores(f"set {text}", 1234, before, after, (0.0111, 0.0522)),
            Scores("other test", 7, None, after),
        ],
        mined=[
            report.Mined(
                "one set",
                report.Mining("perc_pos", text, 300, 290, 10, 1187, {"above the ceiling": 4321}),
                report.TeacherScores(
                    rng.normal(0.8, 0.05, 300),
                    rng.normal(0.6, 0.05, 1200),
                    rng.normal(0.78, 0.05, 90),
                    rng.normal(0.76, 0.05, 300),
                ),
                [example] * 20,
            )
        ],
        training=report.Training(
            range(0, 1000), np.linspace(2, 1, 1000), [1e-5, 2e-5], [0, 999], [0.51, 0.5299]
        ),
        cuts=[report.Cut(text, "one set passages", 64, "41.7 %", "583 of 1,398")],
        config={"mining.rule": text, "train.batch_size": 32},
        environment={"jax": "0.10.2", "devices": text},
    )


@pytest.fixture(scope="module")
def page_text():
    return report.build(full_data())


def test_page_is_self_contained_and_well_formed(page_text):
    page = Page(page_text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#"), (tag, name, value)
            assert value[1:] in page.ids, value
    assert "://" not in page_text
    assert "@import" not in page_text
    for target in re.findall(r"url\(([^)]*)\)", page_text):
        assert target.lstrip("#") in page.ids
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    assert page_text.startswith("<!DOCTYPE html>")


def test_every_number_given_is_shown(page_text):
    text = re.sub(r"\s+", " ", " ".join(Page(page_text).text))
    for shown in (
        "0.5000 → 0.5313",
        "+0.0313",
        "−0.0089",
        "+0.0111 to +0.0522",
        "1,234",
        "nDCG@10",
        "MRR@10",
        "4,321",
        "1,187",
        "0.811",
        "rank 3",
        "0.702",
        "0.795",
        "above the ceiling an ordinary passage",
        "below 0.770",
        "THE-END",
        "train.batch_size",
        "0.10.2",
        "0.5299",
        "583 of 1,398",
        "41.7 %",
    ):
        assert shown in text, shown
    assert page_text.count("<article>") == 20


def test_hostile_text_stays_text():
    page_text = report.build(full_data(HOSTILE))
    page = Page(page_text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.text)


def test_text_that_utf8_or_html_cannot_hold_is_written(tmp_path):
    data = full_data("lone \ud800 surrogate, NUL \x00, accent é, 漢字")
    report.write(data, tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_bytes()
    assert "accent é, 漢字" in raw.decode("utf-8")
    assert b"\x00" not in raw
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_same_data_same_bytes(page_text):
    assert report.build(full_data()) == page_text


def test_missing_sections_are_absent():
    only = report.ReportData("evaluation", scores=[Scores("d", 5, None, {"map": 0.25})])
    text = report.build(only)
    headings = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert headings == ["Retrieval scores"]
    assert "0.2500" in text
    assert "before" not in " ".join(Page(text).text)
    assert re.findall(r"<h2", report.build(report.ReportData("nothing"))) == []


def test_long_passages_fold_and_short_ones_do_not(page_text):
    page = Page(page_text)
    assert page.tags.count("details") == page.tags.count("summary") == 20
    assert report._lead("short\n text") == "short text"
    lead = report._lead("word " * 1000)
    assert len(lead) <= report.FOLD_AT + 2
    assert lead.endswith("word …")


def test_rules_without_a_ceiling_draw_none():
    (one,) = full_data().mined
    scores = report.TeacherScores(
        one.teacher_scores.positive, one.teacher_scores.negative, np.array([]), np.full(9, np.inf)
    )
    example = report.Example("q", "t", one.examples[0].positives, [], [], math.inf)
    mined = report.Mined("set", teacher_scores=scores, examples=[example])
    text = report.build(report.ReportData("naive", mined=[mined]))
    words = " ".join(Page(text).text)
    assert "ceiling" not in words
    assert "rejected by the rule" not in words
    assert "inf" not in words
    assert 'class="ceiling"' not in text


def test_charts_name_their_content_and_use_the_pages_colours():
    chart = figures.score_histogram(
        np.array([0.9, 0.8]), np.array([0.5]), np.array([0.85]), np.array([0.7, math.inf])
    )
    assert "positives: 2, median 0.850" in chart.description
    assert "ceilings: 1, median 0.700" in chart.description
    for drawing in (chart.wide, chart.narrow):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label") == chart.description
        for variable in ("--positive", "--negative", "--dropped", "--ceiling", "--muted"):
            assert f"var({variable})" in drawing
        assert not re.search(r"#0[1-7]0[1-7]0[1-7]", drawing)
        assert "<text" in drawing
        assert "metadata" not in drawing
    ids = [
        e.get("id") for d in (chart.wide, chart.narrow) for e in ElementTree.fromstring(d).iter()
    ]
    ids = [i for i in ids if i]
    assert len(ids) == len(set(ids))


def test_histogram_shares_add_up():
    bins = np.linspace(0, 1, 11)
    shares = figures._shares(np.array([-5.0, 0.05, 0.05, 0.95, 7.0]), bins)
    assert shares.sum() == pytest.approx(100)
    assert shares[0] == pytest.approx(60)
    assert shares[-1] == pytest.approx(40)


def test_long_curves_are_thinned_without_moving():
    x, y = figures._thin(np.arange(10_000.0), np.full(10_000, 2.0))
    assert len(x) <= 400
    assert set(y) == {2.0}
    assert x[0] < 25
    x, y = figures._thin(np.arange(3.0), np.array([1.0, np.nan, 3.0]))
    assert x.tolist() == [0, 2]
    chart = figures.training_curve(range(3), [3.0, 2.0, 1.5])
    assert "Loss from 3.000 at step 0 to 1.500 at step 2." in chart.description
    assert "dev" not in chart.wide


def test_drawing_leaves_pyplot_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.training_curve([1, 2], [1.0, 0.5], [1], [0.3])
    assert dict(mpl.rcParams) == before


def test_each_set_has_its_own_mining_section_and_examples():
    (one,) = full_data().mined
    other = report.Mined("second set", report.Mining("naive", "t", 48, 48, 0, 240, {}))
    both = report.build(report.ReportData("sets", mined=[one, other]))
    words = re.sub(r"\s+", " ", " ".join(Page(both).text))
    assert "rule naive: 240 hard negatives for 48 queries" in words
    assert "rule perc_pos: 1,187 hard negatives for 300 queries" in words
    assert re.findall(r"<h3>([^<]*)</h3>", both)[:2] == ["one set", "second set"]
    assert "second set" not in report.build(report.ReportData("set", mined=[one]))

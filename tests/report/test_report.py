"""The page: nothing leaves it, nothing runs in it, and every number is the one given."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from nvret_jax.evaluation.comparison import Scores
from nvret_jax.report import content, figures, report

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


def ranked_query(text, before, after):
    """A test query with one hit before, and two after."""
    hits = [content.Hit("p0", text, 1, False), content.Hit("p1", f"{text} relevant", 2, True)]
    first = {"before": None, "after": 2, "BM25": 17}
    return content.RankedQuery(f"id-{text}", text, before, after, first, hits[:1], hits)


def full_data(text="an ordinary passage"):
    rng = np.random.default_rng(0)
    long = f"{text} " + "word " * 100 + "THE-END"
    example = content.Example(
        query_id=f"q-{text}",
        query=text,
        positives=[content.Passage("p0", long, 0.811, 1)],
        negatives=[
            content.Passage("p1", text, 0.702, 3, teacher=text),
            content.Passage("p2", "", 0.61, 9),
        ],
        dropped=[content.Passage("p3", text, 0.795, 2, why=f"above the ceiling {text}")],
        ceiling=0.77,
    )
    before = {"ndcg_cut_10": 0.5, "recip_rank_10": 0.45, "map": 0.4}
    after = {"ndcg_cut_10": 0.5313, "recip_rank_10": 0.45, "map": 0.3911}
    return content.ReportData(
        title=f"run {text}",
        lead=text,
        scores=[
            Scores(
                f"set {text}",
                1234,
                before,
                after,
                (0.0111, 0.0522),
                bm25={"ndcg_cut_10": 0.4321, "recip_rank_10": 0.4, "map": 0.3},
            ),
            Scores("other test", 7, None, after),
        ],
        mined=[
            content.Mined(
                "one set",
                content.Mining(
                    "perc_pos",
                    text,
                    300,
                    290,
                    10,
                    1187,
                    {"above the ceiling": 4321},
                    wanted=4,
                    used="2 of them per query",
                    false_negatives=f"7.7 % may be relevant {text}",
                ),
                content.TeacherScores(
                    rng.normal(0.8, 0.05, 300),
                    rng.normal(0.6, 0.05, 1200),
                    rng.normal(0.78, 0.05, 90),
                    rng.normal(0.76, 0.05, 300),
                ),
                [example] * 20,
            )
        ],
        compared=content.Compared(
            f"set {text}",
            700,
            300,
            234,
            np.linspace(0.4, -0.2, 1234),
            {
                "Largest gains": [ranked_query(text, 0.2, 0.6)],
                "Largest losses": [ranked_query(text, 0.7, 0.5), ranked_query(text, 0.3, 0.2)],
            },
        ),
        training=content.Training(
            content.Curve("loss", range(1000), np.linspace(2, 1, 1000)),
            content.Curve("dev", [0, 999], [0.51, 0.5299]),
            [
                content.Curve("learning rate", range(1000), np.linspace(1e-5, 2e-5, 1000)),
                content.Curve("norm", [1], [3.5]),
            ],
            speed=[content.Curve("queries per second", [1, 2], [30.0, 31.5])],
            bounds=[500],
            outcome=f"outcome {text}",
        ),
        sizes=[
            content.Size(
                "training",
                text,
                "beir:x",
                1398,
                {"train": 135, "dev": 45},
                {"train": 6.5, "dev": 8.25},
            )
        ],
        snippets={"sentence-transformers": f"model = load({text!r})"},
        commands=[f"python -m nvret_jax.main --config=a.py --name={text}"],
        timings=[
            content.Timing("embed", 12.0, "2026-01-02 03:04"),
            content.Timing("train", 600.0, "2026-01-02 03:15"),
        ],
        cuts=[content.Cut(text, "one set passages", 64, "41.7 %", "583 of 1,398")],
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
        "0.4321",
        "700 better",
        "300 equal",
        "234 worse",
        "0.7000 → 0.5000",
        "before not found, after rank 2, BM25 rank 17",
        "at most 4 for each; training takes 2 of them per query",
        "7.7 % may be relevant",
        "6.50",
        "8.25",
        "12 s",
        "10 min 0 s",
        "10 min 12 s",
        "2026-01-02 03:15",
        "Outcome an ordinary passage.",
    ):
        assert shown in text, shown
    assert page_text.count('<details class="card"') == 20 + 3


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
    only = content.ReportData("evaluation", scores=[Scores("d", 5, None, {"map": 0.25})])
    text = report.build(only)
    headings = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert headings == ["Contents", "Retrieval scores"]
    assert "0.2500" in text
    assert "before" not in " ".join(Page(text).text)
    assert re.findall(r"<h2", report.build(content.ReportData("nothing"))) == []


def test_long_passages_fold_and_short_ones_do_not(page_text):
    page = Page(page_text)
    assert page.tags.count("details") == page.tags.count("summary") == 20 + 23
    assert report._lead("short\n text") == "short text"
    lead = report._lead("word " * 1000)
    assert len(lead) <= report.FOLD_AT + 2
    assert lead.endswith("word …")


def test_rules_without_a_ceiling_draw_none():
    (one,) = full_data().mined
    scores = content.TeacherScores(
        one.teacher_scores.positive, one.teacher_scores.negative, np.array([]), np.full(9, np.inf)
    )
    example = content.Example("q", "t", one.examples[0].positives, [], [], math.inf)
    mined = content.Mined("set", teacher_scores=scores, examples=[example])
    text = report.build(content.ReportData("naive", mined=[mined]))
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


def test_the_contents_list_every_section_in_order(page_text):
    listed = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a>', page_text)
    sections = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', page_text)
    assert listed == sections
    assert [name for name, _ in listed] == [
        "scores",
        "queries",
        "training",
        "mining",
        "examples",
        "data",
        "cuts",
        "use",
        "setup",
    ]
    less = report.build(content.ReportData("some", cuts=full_data().cuts))
    assert re.findall(r'<a href="#([^"]+)">', less) == ["cuts"]


def test_everything_can_be_reached_with_the_keyboard(page_text):
    page = Page(page_text)
    first = next((name, value) for tag, name, value in page.attributes if tag == "a")
    assert ("a", "class", "skip") in page.attributes
    assert first[0] in ("class", "href")
    regions = [tag for tag, name, value in page.attributes if (name, value) == ("role", "region")]
    focusable = [tag for tag, name, value in page.attributes if (name, value) == ("tabindex", "0")]
    assert regions == focusable  # what scrolls sideways takes the focus
    labelled = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert set(labelled) <= set(page.ids)
    assert "outline: none" not in page_text


def test_long_commands_are_folded(page_text):
    assert "nvret_jax.main \\\n  --config=a.py \\\n  --name=" in page_text


def test_training_that_did_not_help_stands_out():
    training = content.Training(content.Curve("loss", [1], [1.0]), outcome="no", helped=False)
    assert '<p class="note">No.</p>' in report.build(content.ReportData("t", training=training))


def test_long_curves_are_thinned_without_moving():
    x, y = figures._thin(np.arange(10_000.0), np.full(10_000, 2.0))
    assert len(x) <= 400
    assert set(y) == {2.0}
    assert x[0] < 25
    x, y = figures._thin(np.arange(3.0), np.array([1.0, np.nan, 3.0]))
    assert x.tolist() == [0, 2]
    curve = content.Curve("loss", range(3), [3.0, 2.0, 1.5])
    chart = figures.training_curve(content.Training(curve))
    assert "Loss from 3.000 at step 0 to 1.500 at step 2." in chart.description
    assert "dev" not in chart.wide


def test_every_other_curve_has_a_panel_of_its_name():
    curves = [content.Curve(name, range(50), np.arange(50.0)) for name in ("one", "two", "three")]
    training = content.Training(content.Curve("loss", [], []), others=curves)
    assert figures.training_curve(training) is None
    chart = figures.small_curves("some", curves)
    for drawing in (chart.wide, chart.narrow):
        for name in ("one", "two", "three"):
            assert f">{name}</text>" in drawing
    heights = [int(re.search(r'height="(\d+)"', d)[1]) for d in (chart.wide, chart.narrow)]
    assert heights[1] > heights[0]  # one below the other on a phone
    assert figures.small_curves("none", [content.Curve("one", [1], [math.nan])]) is None


def test_what_the_clock_says_is_in_the_last_section_alone(page_text):
    before, after = page_text.split('<section aria-labelledby="setup">')
    for words in ("queries per second", "2026-01-02 03:15", "10 min"):
        assert words in after
        assert words not in before


def test_differences_are_counted_in_words():
    chart = figures.differences(np.array([0.5, 0.0, -0.25, 0.125]))
    assert "each of 4 test queries: 2 above zero, 1 below" in chart.description
    for variable in ("--positive", "--negative"):
        assert f"var({variable})" in chart.wide


def test_drawing_leaves_pyplot_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.training_curve(full_data().training)
    assert dict(mpl.rcParams) == before


def test_each_set_has_its_own_mining_section_and_examples():
    (one,) = full_data().mined
    other = dataclasses.replace(
        one, dataset="second set", mining=content.Mining("naive", "t", 48, 48, 0, 240, {})
    )
    both = report.build(content.ReportData("sets", mined=[one, other]))
    words = re.sub(r"\s+", " ", " ".join(Page(both).text))
    assert "rule naive: 240 hard negatives for 48 queries" in words
    assert "rule perc_pos: 1,187 hard negatives for 300 queries" in words
    assert re.findall(r"<h3>([^<]*)</h3>", both)[:2] == ["one set", "second set"]
    ids = Page(both).ids
    assert len(ids) == len(set(ids)), "drawings of two sets share an id"
    assert "second set" not in report.build(content.ReportData("set", mined=[one]))

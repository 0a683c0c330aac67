"""The page of `search --web`: what it shows, and what it refuses."""

from __future__ import annotations

import contextlib
import html
import http.client
import re
import threading
import urllib.parse

import pytest

from nvret_jax.commands import web
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.errors import InputError
from nvret_jax.search.texts import Hit

CORPUS = TextTable(
    ("p0", "p1", "<b>", "p3"),
    ["zero & more", "<script>alert(1)</script>", "two", "word " * 200 + "end"],
)
DATA = Dataset(
    "toy",
    CORPUS,
    TextTable(("q0", "q1"), ["what is two?", "no judgment"]),
    {"test": {"q0": {"<b>": 1, "p0": 0}, "q1": {"p1": 0}}},
    "",
)


class Ranked:
    """A search that gives the same rows for any query."""

    corpus = CORPUS

    def __init__(self, *rows: int):
        self.rows, self.asked = rows, []

    def hits(self, query, k):
        self.asked.append(query)
        return [Hit(row, 1.0 / n, n) for n, row in enumerate(self.rows[:k], 1)]


@contextlib.contextmanager
def served(page):
    with web.make_server(page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture(scope="module")
def two():
    """A page of two models, its port, and their searches."""
    before, after = Ranked(0, 1, 2), Ranked(2, 0, 3)
    with served(web.Page({"old": before, "<new>": after}, DATA, 3)) as port:
        yield port, before, after


def ask(port, path="/", method="GET", host=None, **headers):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def search(port, query):
    status, headers, body = ask(port, "/?q=" + urllib.parse.quote(query))
    assert status == 200
    return headers, body


def sections(body):
    """The hits of each section: (rank, mark, id, whether relevant)."""
    out = []
    for section in re.findall(r"<section>(.*?)</section>", body, re.DOTALL):
        found = []
        for kind, hit in re.findall(r'<li class="(hit[^"]*)">(.*?)</li>', section, re.DOTALL):
            rank = re.search(r'class="rank">(\d+)<', hit)[1]
            mark = re.search(r'class="tag (?!judged)\w+">([^<]+)<', hit)
            name = re.search(r"</span> <span>([^<]+)</span>|\n <span>([^<]+)</span>", hit)
            name = html.unescape(next(filter(None, name.groups())))
            found.append((int(rank), mark and mark[1], name, "relevant" in kind))
        out.append(found)
    return out


def test_two_models_side_by_side_with_moves_and_judgments(two):
    port, before, after = two
    _, body = search(port, "  what   is two? ")
    assert before.asked[-1] == after.asked[-1] == "what is two?"
    assert sections(body) == [
        [(1, None, "p0", False), (2, "gone", "p1", False), (3, None, "<b>", True)],
        [(1, "▲ 2", "<b>", True), (2, "▼ 1", "p0", False), (3, "new", "p3", False)],
    ]
    assert "2 of 3 passages are in both lists" in body
    assert "1 of 1 relevant, the first at rank 3" in body
    assert "1 of 1 relevant, the first at rank 1" in body
    # A long passage is folded.
    assert body.count("<details>") == 1
    assert re.search(r"<details>.*end</p>", body, re.DOTALL)


def test_one_model_alone_has_no_moves():
    with served(web.Page({"m": Ranked(1, 0)}, None, 10)) as port:
        _, body = search(port, "x")
        assert sections(body) == [[(1, None, "p1", False), (2, None, "p0", False)]]
        assert "in both" not in body
        assert 'class="suggested' not in body


def test_the_first_page_suggests_queries_that_have_judgments(two):
    port, before, _ = two
    asked = len(before.asked)
    body = ask(port)[2]
    assert '<a href="/?q=what%20is%20two%3F">what is two?</a>' in body
    assert "no judgment" not in body
    assert "<section>" not in body
    assert len(before.asked) == asked


@pytest.mark.parametrize(
    "query", ["<script>x</script>", '"><img src=x>', "{{ 7 * 7 }}", "a\0b\ud800"]
)
def test_all_text_is_escaped(two, query):
    sent = urllib.parse.quote(query, errors="surrogatepass")
    _, headers, body = ask(two[0], f"/?q={sent}")
    assert "<script" not in body
    assert "<img" not in body
    assert "&lt;script&gt;alert(1)" in body
    assert "&lt;new&gt;" in body
    assert "49" not in body.split("</style>")[1]
    value = html.unescape(re.search(r'name="q" value="([^"]*)"', body)[1])
    assert value == urllib.parse.unquote(sent, errors="replace")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in body.replace('http-equiv="', "")  # nothing from elsewhere


def test_only_this_machine_under_its_own_name_is_answered(two):
    port, before, _ = two
    asked = len(before.asked)
    assert web.HOST == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""):
        assert ask(port, "/?q=x", host=host)[0] == 421, host
    assert ask(port, "/?q=x", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(port, "/?q=x", Sec_Fetch_Site="same-site")[0] == 403
    assert len(before.asked) == asked
    assert ask(port, "/?q=x", host=f"localhost:{port}")[0] == 200
    assert ask(port, "/?q=x", Sec_Fetch_Site="same-origin")[0] == 200


def test_what_is_no_page_is_refused(two):
    port, before, _ = two
    asked = len(before.asked)
    assert ask(port, "/etc/passwd")[0] == 404
    assert ask(port, "/../x")[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert ask(port, "/?q=x", method)[0] == 501
    assert ask(port, "/?q=" + "x" * 5000)[0] == 400
    assert ask(port, "/?" + "&".join(f"a{n}=1" for n in range(50)))[0] == 200
    assert len(before.asked) == asked
    status, headers, body = ask(port, "/", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_searches_come_one_at_a_time(two):
    port, before, _ = two
    busy, together = threading.Lock(), []
    plain = before.hits

    def hits(query, k):
        together.append(not busy.acquire(blocking=False))
        try:
            threading.Event().wait(0.02)
            return plain(query, k)
        finally:
            busy.release()

    before.hits = hits
    try:
        threads = [threading.Thread(target=search, args=(port, f"q{n}")) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        before.hits = plain
    assert together == [False] * 6


def test_a_port_that_is_taken_is_named(two):
    with pytest.raises(InputError, match=f"--port={two[0]}: cannot listen there"):
        web.make_server(web.Page({"m": Ranked(0)}, None, 1), two[0])

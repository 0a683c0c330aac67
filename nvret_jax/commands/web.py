"""The page of `search --web`: one model, or two side by side, for a browser on this machine.

Choices:

- The whole page is rendered here, by a template that escapes all values; there is no script, and
  nothing is loaded from elsewhere. The policy sent with it allows neither.
- The server listens only at 127.0.0.1, and answers only requests for that name and for localhost: a
  page elsewhere on the web cannot make a browser read from it under another name (DNS rebinding),
  nor have it search by a link in an image.
- A request only reads: everything but GET and HEAD is refused.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import http.server
import pathlib
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.processes import log
from nvret_jax.search.texts import Hit, TextSearch

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_LONGEST = 4096  # characters of a query
_SHORT = 280  # characters of a passage before it is unfolded
_SUGGESTIONS = 6
_MOST_SHOWN = 100  # passages per model on a page


@dataclasses.dataclass(frozen=True)
class Shown:
    """A passage on the page.

    Attributes:
        rank, score: of this model.
        id: of the passage.
        beginning, rest: its text; the rest is unfolded.
        move: how the rank differs from the other model's, '' for a single model.
        kind: of the move: 'up', 'down', 'same', 'new' or ''.
        relevant: whether it is judged relevant to the query.
    """

    rank: int
    score: str
    id: str
    beginning: str
    rest: str
    move: str
    kind: str
    relevant: bool


@dataclasses.dataclass(frozen=True)
class Column:
    """The results of one model.

    Attributes:
        title: of the column.
        model: its name.
        hits: best first.
        note: on its judged passages, '' if none are known.
    """

    title: str
    model: str
    hits: Sequence[Shown]
    note: str


class Page:
    """The content of the page for any query."""

    def __init__(self, searches: Mapping[str, TextSearch], data: Dataset | None, k: int):
        """A page.

        Args:
            searches: name of a model -> its search, one or two, the earlier one first; of one
                corpus.
            data: the data set of the corpus, for its queries and judgments; None: none.
            k: passages per model.
        """
        self._searches, self._k = dict(searches), min(k, _MOST_SHOWN)
        self._corpus = next(iter(searches.values())).corpus
        self._name = data.name if data is not None else "a file of texts"
        self._lock = threading.Lock()  # concurrent searches bring no gain, and may deadlock
        self._relevant: dict[str, set[str]] = {}  # text of a query -> ids of relevant passages
        self._suggested: list[str] = []
        if data is not None:
            self._read_queries(data)
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._template = environment.get_template("web_page.html.j2")
        source = environment.loader.get_source(environment, "web_page.html.j2")[0]
        style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1]
        self.style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    def _read_queries(self, data: Dataset) -> None:
        splits = [split for split in ("test", "dev") if split in data.qrels] or list(data.qrels)
        for split in splits:
            for query, judged in data.qrels[split].items():
                text = data.queries.texts[data.queries.row[query]].strip()
                found = {passage for passage, grade in judged.items() if grade > 0}
                if found:
                    self._relevant.setdefault(text, set()).update(found)
        short = [text for text in self._relevant if len(text) <= 120]
        step = max(1, len(short) // _SUGGESTIONS)
        self._suggested = short[::step][:_SUGGESTIONS]

    def html(self, query: str) -> str:
        """The page for a query; '' is the page before the first one."""
        query = " ".join(query.split())
        columns: list[Column] = []
        seconds = 0.0
        if query:
            begun = time.perf_counter()
            with self._lock:
                found = {m: s.hits(query, self._k) for m, s in self._searches.items()}
            seconds = time.perf_counter() - begun
            columns = self._columns(query, found)
        return self._template.render(
            query=query,
            columns=columns,
            both=self._in_both(columns),
            milliseconds=round(1000 * seconds),
            corpus=self._name,
            passages=len(self._corpus),
            models=list(self._searches),
            suggested=[text for text in self._suggested if text != query],
            k=self._k,
        )

    def _columns(self, query: str, found: Mapping[str, Sequence[Hit]]) -> list[Column]:
        relevant = self._relevant.get(query, set())
        titles = ["Before", "After"] if len(found) == 2 else ["Results"]
        out = []
        for title, (model, hits) in zip(titles, found.items(), strict=True):
            others = [o for other, o in found.items() if other != model]
            ranks = {hit.row: hit.rank for hit in others[0]} if others else None
            shown = [self._shown(hit, ranks, relevant, after=title == "After") for hit in hits]
            out.append(Column(title, model, shown, _note(shown, relevant)))
        return out

    def _shown(
        self, hit: Hit, ranks: Mapping[int, int] | None, relevant: set[str], *, after: bool
    ) -> Shown:
        text, identifier = self._corpus.texts[hit.row], self._corpus.ids[hit.row]
        cut = len(text) if len(text) <= _SHORT else text.rfind(" ", 0, _SHORT)
        cut = _SHORT if cut <= 0 else cut
        move, kind = "", ""
        if ranks is not None:
            other = ranks.get(hit.row)
            if other is None:
                move, kind = ("new", "new") if after else ("gone", "down")
            elif after:
                by = other - hit.rank
                kind = "up" if by > 0 else "down" if by < 0 else "same"
                move = f"▲ {by}" if by > 0 else f"▼ {-by}" if by < 0 else "="
        return Shown(
            hit.rank,
            f"{hit.score:.3f}",
            identifier,
            text[:cut],
            text[cut:],
            move,
            kind,
            identifier in relevant,
        )

    @staticmethod
    def _in_both(columns: Sequence[Column]) -> int | None:
        """The number of passages that both models have; None for one model."""
        if len(columns) < 2:
            return None
        first, second = ({hit.id for hit in column.hits} for column in columns)
        return len(first & second)


def _note(shown: Sequence[Shown], relevant: set[str]) -> str:
    if not relevant:
        return ""
    ranks = [hit.rank for hit in shown if hit.relevant]
    if not ranks:
        return f"none of {len(relevant)} relevant among these {len(shown)}"
    return f"{len(ranks)} of {len(relevant)} relevant, the first at rank {ranks[0]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers for `page`; the top of this file describes what is refused."""

    server_version, sys_version = "nvret_jax", ""

    def __init__(self, *given: Any, page: Page):
        self._page = page
        super().__init__(*given)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        host = self.headers.get("Host", "")
        port = self.server.server_address[1]
        if host not in [f"{name}:{port}" for name in _NAMES] + [*_NAMES] * (port == 80):
            self._send(421, f"this page is at http://{HOST}:{port}/")
            return
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._send(403, f"open http://{HOST}:{port}/ in the browser itself")
            return
        try:
            parts = urllib.parse.urlsplit(self.path)
        except ValueError:
            self._send(400, "the address is not valid")
            return
        if parts.path != "/":
            self._send(404, "the only page is /")
            return
        try:
            asked = urllib.parse.parse_qs(parts.query, errors="replace", max_num_fields=8)
        except ValueError:
            asked = {"q": [""]}
        query = asked.get("q", [""])[0]
        if len(query) > _LONGEST:
            self._send(400, f"a query has at most {_LONGEST:,} characters")
            return
        try:
            html = self._page.html(query)
        except InputError as error:
            self._send(400, str(error))
            return
        self._send(200, html, "text/html")

    def _send(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        style = f"'sha256-{self._page.style_hash}'"
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"default-src 'none'; style-src {style}; img-src data:; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prints nothing: a line per request would bury the rest."""


class _Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that disconnects is not an error; anything else is a line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            log.error(f"error: page: {type(error).__name__}: {error}")


def make_server(page: Page, port: int = 0) -> http.server.ThreadingHTTPServer:
    """The server of a page, listening; `serve_forever` answers.

    Args:
        page: see above.
        port: 0 takes any that is free.

    Raises:
        InputError: the port is taken.
    """
    try:
        return _Server((HOST, port), functools.partial(_Handler, page=page))
    except OSError as error:
        raise InputError(
            f"--port={port}: cannot listen there ({error.strerror}); choose another, or 0 for any"
        ) from None


def serve(searches: Mapping[str, TextSearch], data: Dataset | None, *, k: int, port: int) -> int:
    """Serves the page until a signal ends the process."""
    with make_server(Page(searches, data, k), port) as server:
        print(f"page      http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0

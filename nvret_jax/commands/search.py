"""`python -m nvret_jax search MODEL CORPUS`: queries typed, from a file, or on a page (web.py)."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

from nvret_jax.commands import models
from nvret_jax.commands.options import SearchTexts
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.data.load import has_scheme
from nvret_jax.data.texts import read_texts
from nvret_jax.errors import InputError
from nvret_jax.evaluation import output
from nvret_jax.files import paths
from nvret_jax.files.atomic import whole_file
from nvret_jax.files.json_lines import dump_line
from nvret_jax.processes import log
from nvret_jax.search.rankers import vectors
from nvret_jax.search.texts import Hit, TextSearch

_WIDTH = 80
_BLOCK = 256  # queries of a file answered at a time
_OUTPUTS = (".jsonl", ".trec")
_MORE = """\
CORPUS is a data set such as beir:DIR, or a file of texts. If MODEL is the
workdir of a run, the model that it started from is shown next to its export:
  python -m nvret_jax search runs/quickstart pydocs: --web
  python -m nvret_jax search runs/quickstart pydocs: --queries=questions.txt \\
    --output=found.jsonl
"""


def run(asked: Asked) -> int:
    """Prepares the corpus, and answers queries.

    Raises:
        InputError: mistakes in models, corpus or options; one line.
    """
    given, (word, source) = asked.options, asked.words
    _check(given)
    data, table = _corpus(source, given)
    queries = None
    if given.queries:
        queries = read_texts(given.queries, kind="query")
    before = given.before
    if "before" not in asked.given and queries is None:
        before = models.start_of(word)
    after = _ready(word, table, given, given.vectors)
    earlier = _ready(before, table, given, "") if before else None
    if given.web:
        from nvret_jax.commands import web

        columns = {before: earlier} if earlier else {}
        return web.serve(columns | {word: after}, data, k=given.k, port=given.port)
    if queries is not None:
        _answer(after, queries, given)
        return 0
    _converse(after, earlier, given.k)
    return 0


def _check(given: SearchTexts) -> None:
    if given.web and given.queries:
        raise InputError("search: --web and --queries: choose one of them")
    if given.output and not given.queries:
        raise InputError(f"search: --output={given.output}: needs --queries=FILE")
    if given.output and not given.output.endswith(_OUTPUTS):
        raise InputError(
            f"search: --output={given.output}: the name must end in {' or '.join(_OUTPUTS)}"
        )
    if given.queries and given.before:
        raise InputError("search: --before is for typed queries and --web, not for --queries")


def _corpus(source: str, given: SearchTexts) -> tuple[Dataset | None, TextTable]:
    """The passages, and their data set, if they belong to one."""
    if has_scheme(source):
        data = models.dataset(source, given.source, download=given.model.download)
        return data, data.corpus
    return None, models.corpus(
        source,
        given.source,
        download=given.model.download,
        column=given.column,
        id_column=given.id_column,
    )


def _ready(word: str, table: TextTable, given: SearchTexts, file: str) -> TextSearch:
    encoder = models.encoder(word, given.model)
    passages_nd = None
    if file:
        passages_nd = vectors.open_file(paths.local(file, "--vectors"), table.ids)
    return TextSearch(
        encoder,
        table,
        passages_nd=passages_nd,
        query_length=given.model.query_length or None,
        passage_length=given.model.passage_length or None,
        backend=given.backend,
        progress=True,
    )


def _answer(search: TextSearch, queries: TextTable, given: SearchTexts) -> None:
    """Answers the queries of a file."""
    found = _found(search, queries, given.k)
    if not given.output:
        for query, hits in found:
            print(_shown(queries.texts[query], hits, search.corpus), end="\n\n")
        return
    target = paths.local(given.output, "--output")
    if target.suffix == ".trec":
        scores_qk, rows_qk = search.search(queries.texts, given.k)
        output.write_trec_run(target, queries.ids, search.corpus.ids, scores_qk, rows_qk)
    else:
        with whole_file(target) as file:
            for query, hits in found:
                said = {"query_id": queries.ids[query], "query": queries.texts[query]}
                said["hits"] = [
                    {
                        "id": search.corpus.ids[hit.row],
                        "score": float(f"{hit.score:.8g}"),
                        "text": search.corpus.texts[hit.row],
                    }
                    for hit in hits
                ]
                file.write(dump_line(said))
    most = min(given.k, len(search.corpus))
    log.say(f"output    {target}: {most:,} passages for each query; queries: {len(queries):,}")


def _found(search: TextSearch, queries: TextTable, k: int) -> Iterator[tuple[int, list[Hit]]]:
    """The row of a query and its hits, for all queries of a table."""
    for start in range(0, len(queries), _BLOCK):
        scores_qk, rows_qk = search.search(queries.texts[start : start + _BLOCK], k)
        for number, (scores, rows) in enumerate(zip(scores_qk, rows_qk, strict=True), start):
            pairs = zip(scores.tolist(), rows.tolist(), strict=True)
            yield number, [Hit(row, s, n) for n, (s, row) in enumerate(pairs, 1) if row >= 0]


def _converse(after: TextSearch, before: TextSearch | None, k: int) -> None:
    """Answers typed queries, until an empty line or the end of the input."""
    asks = sys.stdin.isatty()
    if asks:
        log.say("Type a query; an empty line ends.")
    while True:
        try:
            query = input("query> " if asks else "").strip()
        except EOFError:
            break
        if not query:
            break
        hits = after.hits(query, k)
        ranks = None
        if before is not None:
            ranks = {hit.row: hit.rank for hit in before.hits(query, k)}
        print(_shown(query, hits, after.corpus, ranks), end="\n\n", flush=True)


def _shown(
    query: str, hits: Sequence[Hit], corpus: TextTable, ranks: dict[int, int] | None = None
) -> str:
    """Results for a terminal of 80 columns."""
    lines = [textwrap.shorten(query, _WIDTH, placeholder="…")]
    for hit in hits:
        was = ""
        if ranks is not None:
            earlier = ranks.get(hit.row)
            was = "  new" if earlier is None else f"  was {earlier}" * (earlier != hit.rank)
        lines.append(f"{hit.rank:>4}  {hit.score:.4f}  {corpus.ids[hit.row]}{was}"[:_WIDTH])
        text = textwrap.shorten(corpus.texts[hit.row], 2 * (_WIDTH - 6), placeholder=" …")
        lines += textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


COMMAND = Command(
    "Embeds a corpus and answers queries, from the terminal, a file, or a page at 127.0.0.1 that "
    "shows the results of two models side by side.",
    (
        Word("MODEL", "A folder, the workdir of a run, or a hub id."),
        Word("CORPUS", "A data set, or a file of texts."),
    ),
    SearchTexts,
    run,
    _MORE,
)

"""The roles of a table's columns: query, passage, title, negatives, judgment, split.

A column is found by its usual names, or named by the user as an option of the source, such as
`?query=frage&passage=antwort`. Letter case, spaces, '-' and '_' do not matter in usual names. Names
have ranks, and a role takes the best existing rank: next to `question`, a column `text` is the
passage; with only `label`, it is the query. Two columns of the same rank are ambiguous, and the
user has to choose one: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.lines import stem

OPTIONS = ("query", "passage", "title", "negatives", "score", "split_column")

# Best rank first; of one rank, exactly one name may occur.
_QUERIES = (
    "query question anchor query_text question_text search_query user_query q queries questions "
    "frage pregunta domanda",
    "text1 sentence1 sentence_1 sentence_a sent1 input prompt instruction source src claim",
    "text sentence utterance",
    "title headline",
)
_PASSAGES = (
    "passage answer positive pos document context response doc passage_text answer_text "
    "positive_text document_text positives answers passages documents positive_passage antwort "
    "respuesta risposta best_answer accepted_answer",
    "text2 sentence2 sentence_2 sentence_b sent2 output completion reply target tgt",
    "text body content abstract paragraph description summary",
    "label_text label_name category intent label",
)
_TITLES = ("title", "passage_title", "document_title", "headline")
_SCORES = ("label", "score", "relevance", "similarity", "rating", "labels", "scores", "grade")
_SPLITS = ("split",)
_NEGATIVE = re.compile(
    r"(?:hard_?)?neg(?:ative)?s?(?:_(?:text|doc|document|passage)s?)?_?(\d{0,6})"
)
_BY_PLACE = re.compile(r"\d+")
_TEXT_FILES = (".csv", ".tsv", ".txt")
_LONGEST, _MOST = 40, 20  # characters and columns in a message


@dataclasses.dataclass(frozen=True)
class Roles:
    """Columns by role; None if there is none.

    Attributes:
        query, passage: texts; a cell of `passage` may hold a list of them.
        title: is put before the passage.
        negatives: texts, or lists of them.
        score: a grade or a score of query and passage.
        split: the name of a split.
    """

    query: str
    passage: str
    title: str | None
    negatives: tuple[str, ...]
    score: str | None
    split: str | None

    @property
    def columns(self) -> list[str]:
        """All of them, each once."""
        named = [self.query, self.passage, self.title, *self.negatives, self.score, self.split]
        return list(dict.fromkeys(name for name in named if name is not None))

    def described(self) -> str:
        """For messages: "query 'question', passage 'answer'"."""
        found = [f"query '{self.query}'", f"passage '{self.passage}'"]
        if self.title:
            found.append(f"title '{self.title}'")
        if self.negatives:
            more = f" … '{self.negatives[-1]}'" if len(self.negatives) > 1 else ""
            found.append(f"negatives '{self.negatives[0]}'{more}")
        found += [f"score '{self.score}'"] if self.score else []
        return ", ".join(found + ([f"split '{self.split}'"] if self.split else []))


def plain(name: str) -> str:
    """A column's name without letter case, spaces and marks between its words."""
    return re.sub(r"[^\w]+|_+", "_", name.strip().lower()).strip("_")


def recognise(names: Sequence[str], where: str, named: Mapping[str, str]) -> Roles:
    """The roles of the columns of a table.

    Args:
        names: of the columns.
        where: the file, for messages.
        named: role -> column (for negatives: columns joined by ','), as given by the user.

    Raises:
        InputError: a named column is missing, or no column or several could be the query or the
            passage.
    """
    for role, value in named.items():
        for name in value.split(",") if role == "negatives" and value else [value]:
            if name not in names and value:
                raise InputError(f"{where}: no column '{name}' ({role}=); {_there(names)}")
    if named.get("query") and named.get("query") == named.get("passage"):
        raise InputError(
            f"{where}: column '{named['query']}' is named as query= and as passage=; name another "
            "for one of them"
        )
    if names and all(_BY_PLACE.fullmatch(name) for name in names):
        return _by_place(names, where, named)
    taken = {name for value in named.values() for name in value.split(",")}
    free = [name for name in names if name not in taken]
    negatives = tuple(filter(None, named.get("negatives", "").split(",")))
    if "negatives" not in named:
        negatives = _negatives(free)
        free = [name for name in free if name not in negatives]
    query, passage = named.get("query"), named.get("passage")
    if not query:
        # A column that can only be the passage is not the query.
        query = _find(free, _QUERIES, "query", where, names)
        free.remove(query)
    if not passage:
        passage = _find(free, _PASSAGES, "passage", where, names)
        free.remove(passage)

    def other(role: str, choices: Sequence[str]) -> str | None:
        if role in named:
            return named[role] or None
        return next((n for c in choices for n in free if plain(n) == c), None)

    # An n-tuple's `scores` are its teacher's, and do not mark the positive; the number of a class
    # next to its name is not a grade.
    graded = not negatives and plain(passage) not in _PASSAGES[-1].split()
    score = other("score", _SCORES) if "score" in named or graded else None
    return Roles(
        query, passage, other("title", _TITLES), negatives, score, other("split_column", _SPLITS)
    )


def recognise_passages(
    names: Sequence[str], where: str, named: Mapping[str, str]
) -> tuple[str, str | None]:
    """The columns of a table of passages: text, and title or None; see `recognise`."""
    named = {role: named[role] for role in ("passage", "title") if named.get(role) in names}
    free = [name for name in names if name not in named.values()]
    text = named.get("passage")
    title = named.get("title") or next((n for t in _TITLES for n in free if plain(n) == t), None)
    free = [name for name in free if name != title]
    return text or _find(free, _PASSAGES[:-1], "passage", where, names), title


def text_column(names: Sequence[str], kind: str, where: str) -> str:
    """The column of the texts in a table with only texts.

    Args:
        names: of the columns.
        kind: 'query' or 'passage', whose usual names come first.
        where: the file, for messages.

    Raises:
        InputError: no column or several could be it.
    """
    usual = {"query": _QUERIES[:-1], "passage": _PASSAGES[:-1]}
    ranks = [*usual[kind], *(rank for other in usual if other != kind for rank in usual[other])]
    return _find(names, ranks, "text", where, names, option="--column=")


def title_column(names: Sequence[str], text: str) -> str | None:
    """The column of titles that belongs to the column of texts, or None."""
    return next((n for t in _TITLES for n in names if plain(n) == t and n != text), None)


def _find(
    free: Sequence[str],
    ranks: Sequence[str],
    role: str,
    where: str,
    names: Sequence[str],
    *,
    option: str = "",
) -> str:
    option = option or f"?{role}="
    for rank in ranks:
        usual = rank.split()
        found = [name for name in free if plain(name) in usual]
        if len(found) == 1:
            return found[0]
        if found:
            could = " and ".join(f"'{name}'" for name in found)
            raise InputError(
                f"{where}: {could} could each be the {role}; choose one, as in {option}{found[0]}"
            )
    if not free:
        raise InputError(f"{where}: no column is left for the {role}; {_there(names)}")
    headless = ""
    if option.startswith("?") and stem(epath.Path(where))[1] in _TEXT_FILES:
        headless = "; if the first line is data, add ?header=no"
    raise InputError(
        f"{where}: no column has a usual name of a {role}; {_there(names)}; name one, as in "
        f"{option}{_cut(free[0])}{headless}"
    )


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def _there(names: Sequence[str]) -> str:
    found = [_cut(str(name)) for name in names[:_MOST]]
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return f"columns: {', '.join(found) or 'none'}{more}"


def _negatives(names: Sequence[str]) -> tuple[str, ...]:
    """negative, negative_2, negative_10: by number."""
    found = [(match, name) for name in names if (match := _NEGATIVE.fullmatch(plain(name)))]
    return tuple(name for _, name in sorted(found, key=lambda pair: int(pair[0][1] or 0)))


def _by_place(names: Sequence[str], where: str, named: Mapping[str, str]) -> Roles:
    """For a table without column names: a query, its passage, and negatives."""
    if len(names) < 2:
        raise InputError(f"{where}: has one column; expected a query and its passage")
    left = [name for name in names if name not in named.values()]
    query = named.get("query") or left.pop(0)
    passage = named.get("passage") or left.pop(0)
    negatives = tuple(filter(None, named["negatives"].split(","))) if "negatives" in named else None
    return Roles(
        query,
        passage,
        named.get("title"),
        tuple(left) if negatives is None else negatives,
        named.get("score"),
        named.get("split_column"),
    )

"""`python -m nvret_jax evaluate MODEL DATA…`: the scores of a model on data sets.

Each model has its own lengths and prompts unless options change them, like "before" in a run.
"""

from __future__ import annotations

from etils import epath

from nvret_jax.commands import models
from nvret_jax.commands.options import Evaluate
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation import comparison, retrieval
from nvret_jax.evaluation.output import write_evaluation_json, write_trec_run
from nvret_jax.files import paths
from nvret_jax.models.encoder import Encoder
from nvret_jax.processes import log

_MORE = """\
DATA is what data.test takes, such as beir:DIR, pairs:FILE or hf:OWNER/NAME, or
the path of such a folder or file. MODEL may be a run, whose export is scored:
  python -m nvret_jax evaluate runs/mine beir:mine --before=/models/e5-base-v2
"""


def run(asked: Asked) -> int:
    """Scores the model, and perhaps another, on each data set.

    Raises:
        InputError: mistakes in model, data or options; one line.
    """
    given, (word, *sources) = asked.options, asked.words
    output = paths.local(given.output, "--output") if given.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output={given.output}: is a file; expected a folder")
    sets = {source: _read(source, given) for source in sources}
    names = [data.name for data in sets.values()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if output is not None and twice:
        raise InputError(f"--output={given.output}: two data sets are named {twice!r}")
    before, after = [], []
    # One model at a time: two may not fit the devices.
    for model, found in ((given.before, before), (word, after)):
        if model:
            encoder = models.encoder(model, given.model)
            found += [_scored(encoder, data, given) for data in sets.values()]
    if before:
        compared = [comparison.compare(*pair) for pair in zip(before, after, strict=True)]
        table = comparison.comparison_table(compared)
    else:
        compared = [None] * len(after)
        table = comparison.evaluation_table(after)
    print(comparison.table_text(table))
    if output is not None:
        for result, difference in zip(after, compared, strict=True):
            said = {"encoder": word}
            if difference is not None:
                said |= {
                    "before_encoder": given.before,
                    "before": difference.before,
                    "ndcg_cut_10_difference_interval": list(difference.interval),
                }
            _write(output, result, said)
        log.say(f"output    {output}")
    return 0


def _read(source: str, given: Evaluate) -> Dataset:
    data = models.dataset(source, given.source, download=given.model.download, splits=[given.split])
    retrieval.scored_queries(data, given.split, given.how.min_relevance)
    return data


def _scored(encoder: Encoder, data: Dataset, given: Evaluate) -> retrieval.Evaluation:
    return retrieval.evaluate(
        encoder,
        data,
        given.split,
        k=given.how.depth,
        min_relevance=given.how.min_relevance,
        exclude_self=given.how.exclude_self,
        backend=given.backend,
        query_length=given.model.query_length or None,
        passage_length=given.model.passage_length or None,
        progress=True,
    )


def _write(folder: epath.Path, result: retrieval.Evaluation, said: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_trec_run(
        folder / f"{result.dataset}.trec",
        result.query_ids,
        result.passage_ids,
        result.scores_qk,
        result.rows_qk,
    )
    write_evaluation_json(folder / f"{result.dataset}.json", result, said)


COMMAND = Command(
    "Ranks the whole corpus of each data set for the queries of a split, and scores the ranking.",
    (
        Word("MODEL", "The model to score: a folder, the workdir of a run, or a hub id."),
        Word("DATA", "One or more data sets.", many=True),
    ),
    Evaluate,
    run,
    _MORE,
)

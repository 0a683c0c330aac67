"""A retrieval task of mteb out of a BEIR folder, offline; also a script that prints its scores."""

from __future__ import annotations

import sys

import nvret_jax as nv


def small(folder: str, passages: int = 240) -> nv.Dataset:
    """A data set cut to its first judged queries and a few hundred passages."""
    whole = nv.load_dataset(f"beir:{folder}")
    judged = whole.qrels["test"]
    kept, queries = {}, []
    for query in whole.queries.ids:
        if query in judged and len(kept) < passages // 2:
            queries.append(query)
            kept |= dict.fromkeys(judged[query])
    for passage in whole.corpus.ids:
        if len(kept) >= passages:
            break
        kept.setdefault(passage)
    corpus = whole.corpus.select(sorted(kept))
    return nv.load_dataset(
        {
            "corpus": dict(zip(corpus.ids, corpus.texts, strict=True)),
            "queries": {q: whole.queries.texts[whole.queries.row[q]] for q in queries},
            "qrels": {q: judged[q] for q in queries},
        }
    )


def task(data: nv.Dataset, *, top_ranked: dict[str, list[str]] | None = None):
    """A task with the passages, queries and test judgments of a data set."""
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local",
            description="Local.",
            reference=None,
            dataset={"path": "none/none", "revision": "0"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
            modalities=["text"],
            prompt={"query": "Find the paper"},
        )

        def load_data(self, *args, **kwargs):
            def rows(table):
                pairs = zip(table.ids, table.texts, strict=True)
                return datasets.Dataset.from_list([{"id": i, "text": text} for i, text in pairs])

            self.dataset = {
                "default": {
                    "test": {
                        "corpus": rows(data.corpus),
                        "queries": rows(data.queries),
                        "relevant_docs": {q: dict(one) for q, one in data.qrels["test"].items()},
                        "top_ranked": top_ranked,
                    }
                }
            }
            self.data_loaded = True

    return Local()


def score(model, one) -> dict[str, float]:
    """mteb's scores of a model on a task."""
    import mteb

    results = mteb.evaluate(model, one, cache=None, show_progress_bar=False)
    return results.task_results[0].scores["test"][0]


if __name__ == "__main__":
    from nvret_jax.evaluation.mteb import Model

    data_folder, model_folder = sys.argv[1:]
    encoder = nv.Encoder.from_pretrained(model_folder, normalize=True)
    print("devices", encoder.mesh.size)
    print("ndcg", repr(score(Model(encoder), task(small(data_folder)))["ndcg_at_10"]))

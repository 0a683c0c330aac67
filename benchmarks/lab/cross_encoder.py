"""A cross-encoder fine-tuned on a data set's dev queries, on torch and sentence-transformers.

Which set, and the lengths, are those of the grid of rules. No cell trains on dev queries, so a
student that learns from this model has seen none of their judgments. Each query of a step has one
positive and a few negatives, drawn from MiniLM-L6's candidates below 95 % of its lowest positive,
and the loss is the cross-entropy of the positive among them. The result goes to OUT/SET, as a
folder that sentence-transformers and `rescorer.model` read.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.lab import grid as grid_lib
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import remove

BASE = "sentence-transformers/all-MiniLM-L6-v2"
NEGATIVES = 7
POOL = 30  # candidates that negatives are drawn from


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tunes one model per set; returns an exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab.cross_encoder", description=__doc__.splitlines()[0]
    )
    parser.add_argument("sets", nargs="+", help="names of the grid of rules, such as banking77")
    parser.add_argument("--out", default="runs/cross", help="a folder; each set gets one in it")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--queries", type=int, default=8, help="per step")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    args = parser.parse_args(argv)
    try:
        known = grid_lib.read("rules").sets
        unknown = [name for name in args.sets if name not in known]
        if unknown:
            raise InputError(f"{unknown[0]}: the grid of rules has {', '.join(known)}")
        for name in args.sets:
            _tune(name, known[name], pathlib.Path(args.out) / name, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _tune(name: str, wanted: grid_lib.DataSet, out: pathlib.Path, args: argparse.Namespace) -> None:
    import sentence_transformers as st
    import torch

    import nvret_jax.api as nv
    from nvret_jax.models.pretrained.resolve import resolve

    if out.exists():
        print(f"{out} is there; remove it to make it anew")
        return
    data = nv.load_dataset(grid_lib.expanded(wanted.source))
    values = dict(wanted.values)
    lists = list(draws(data, values, args.steps * args.queries))
    torch.manual_seed(0)
    model = st.CrossEncoder(
        str(resolve(BASE)),
        num_labels=1,
        max_length=values["teacher.query_length"] + values["teacher.passage_length"],
        device="cpu",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, anneal_strategy="linear"
    )
    begun, losses = time.monotonic(), []
    model.train()
    for step in range(args.steps):
        chosen = lists[step * args.queries : (step + 1) * args.queries]
        pairs = [(query, passage) for query, passages in chosen for passage in passages]
        read = model.tokenizer(
            [query for query, _ in pairs],
            [passage for _, passage in pairs],
            padding=True,
            truncation=True,
            max_length=model.max_seq_length,
            return_tensors="pt",
        )
        logits = model.model(**read).logits.view(len(chosen), -1)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.long))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 10 == 0 or step + 1 == args.steps:
            minutes = (time.monotonic() - begun) / 60
            mean = np.mean(losses[-10:])
            print(f"{name} {step + 1}/{args.steps} {minutes:.1f} min  loss {mean:.4f}", flush=True)
    aside = out.with_name(f".{out.name}.unfinished")
    remove(aside)
    aside.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(aside))
    aside.rename(out)
    print(f"written to {out}")


def draws(
    data: Dataset, values: grid_lib.Values, count: int
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Queries with a positive and `NEGATIVES` negatives each, the positive first.

    Args:
        data: has a dev split.
        values: of the set's cells: lengths of the teacher, grades.
        count: how many are drawn; a query comes again when all have come.
    """
    import nvret_jax.api as nv

    teacher = nv.Encoder.from_pretrained(BASE)
    how = {"kind": "passage", "max_length": values["teacher.passage_length"]}
    least = values.get("data.min_relevance", 1)
    positives = data.positives("dev", least)
    ids = list(positives)
    queries = [data.queries.texts[data.queries.row[one]] for one in ids]
    row, texts = data.corpus.row, data.corpus.texts
    rows = [[row[passage] for passage in positives[one]] for one in ids]
    table = nv.mine(
        queries,
        texts,
        rows,
        query_embeddings=teacher.encode(
            queries, kind="query", max_length=values["teacher.query_length"]
        ),
        passage_embeddings=teacher.encode(texts, **how),
        num_negatives=POOL,
    )
    rng = np.random.default_rng(0)
    able = np.flatnonzero(table.negative_rows.counts > 0)
    order = np.concatenate([rng.permutation(able) for _ in range(-(-count // len(able)))])
    for number in order[:count].tolist():
        pool = table.negative_rows[number]
        chosen = rng.choice(pool, NEGATIVES, replace=len(pool) < NEGATIVES)
        yield queries[number], (texts[rng.choice(rows[number])], *(texts[p] for p in chosen))


if __name__ == "__main__":
    sys.exit(main())

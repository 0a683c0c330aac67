"""Run by test_text_ids.py on 8 devices: masks of batches from sets with repeated texts.

Asserts that losses, by both ways and on 1 and 8 devices, are those of loops over texts.
"""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "mining"))

from same_text_reference import corpus, known_texts, mined

import nvret_jax.api as nv
from nvret_jax import mesh as mesh_lib
from nvret_jax.data.normalize import normalize
from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.batches.mixture import Mixture, Source
from nvret_jax.training.loss.losses import Loss, batch_loss

BATCH, HARD = 8, 2


def given(positives, passages, seed):
    """A table that somebody else made: any passage may be a negative."""
    rng = np.random.default_rng(seed)
    hard = [rng.choice(passages, HARD, replace=False) for _ in positives]
    lists = Ragged.from_rows(positives, np.int32)
    return Negatives(
        np.arange(len(positives), dtype=np.int32),
        lists,
        None,
        lists,
        Ragged.from_rows(hard, np.int32),
        *[None] * 2,
        ("given",),
        *[None] * 3,
    )


def tokenize(texts):
    return [np.array([1, 2], np.int32)] * len(texts)


def source(name, data, seed):
    examples = Examples.build(
        given(data[2], len(data[1]), seed),
        data[0],
        data[1],
        tokenize,
        tokenize,
        batch_size=BATCH,
        num_negatives=HARD,
        pad_id=0,
        seed=seed,
    )
    return Source(name, examples, 1.0)


def reference(texts, known, q, p, temperature):
    """Mean loss and negatives of rows with texts [B][G], and texts that are no negatives [B]."""
    losses, counts = [], []
    for b, row in enumerate(texts):
        at = [
            b * len(row) + g if c == b else c * len(row) + g
            for c, other in enumerate(texts)
            for g, text in enumerate(other)
            if text is not None and text not in known[b] and (c != b or g > 0)
        ]
        scores = np.append(p[at] @ q[b], p[b * len(row)] @ q[b]) / temperature
        losses.append(np.log(np.exp(scores).sum()) - scores[-1])
        counts.append(len(at))
    return np.mean(losses), np.mean(counts)


def check(seed, meshes):
    data = [corpus(2 * seed), corpus(2 * seed + 1)]
    sources = [source(f"set{i}", one, seed + i) for i, one in enumerate(data)]
    mixture = Mixture.build(
        sources, batch_size=BATCH, num_negatives=HARD, seed=seed, batches="mixed", steps=2
    )
    batch = mixture.batch(0)
    here, picked = mixture._shared(0)
    # Equal queries of the two sets know one another's positives.
    everything = [
        data[0][0] + data[1][0],
        data[0][1] + data[1][1],
        data[0][2] + [[r + len(data[0][1]) for r in rows] for rows in data[1][2]],
    ]
    known_all = known_texts(*everything)
    texts, known = [None] * BATCH, [None] * BATCH
    for s, rows in here.items():
        for b, number, passages in zip(rows, picked[s].numbers, picked[s].passages, strict=True):
            texts[b] = [normalize(data[s][1][r]) if r >= 0 else None for r in passages]
            known[b] = known_all[number + s * len(data[0][0])]
    rng = np.random.default_rng(seed)
    q, p = rng.normal(size=(BATCH, 6)), rng.normal(size=(BATCH * (1 + HARD), 6))
    q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, p))
    expected, negatives = reference(texts, known, q, p, 0.1)
    ids = {name: batch[name] for name in ("passage_ids", "positive_ids")}
    for mesh in meshes:
        for method in ("gather", "ring"):
            loss = Loss(temperature=0.1, method=method, tile_pairs=20)
            with jax.set_mesh(mesh):
                put = [
                    jax.device_put(x, mesh_lib.sharding(mesh, "batch", None))
                    for x in (q.astype(np.float32), p.astype(np.float32))
                ]
                value, metrics = jax.jit(
                    lambda q, p, ids, loss=loss, mesh=mesh: batch_loss(loss, q, p, ids, mesh=mesh)
                )(*put, ids)
            np.testing.assert_allclose(float(value), expected, rtol=1e-5)
            np.testing.assert_allclose(float(metrics["negatives"]), negatives, rtol=1e-6)


def main():
    devices = jax.devices()
    assert len(devices) == 8
    meshes = [mesh_lib.make_mesh(devices=devices[:n]) for n in (1, 8)]
    for seed in range(6):
        check(seed, meshes)
    for seed in range(4):
        query_texts, passage_texts, positives, queries_qd, passages_nd = corpus(seed)
        found = nv.mine(
            query_texts,
            passage_texts,
            positives,
            query_embeddings=queries_qd,
            passage_embeddings=passages_nd,
            percent=1.5,
            num_negatives=3,
            depth=2,
            backend="device",
            progress=False,
        )
        expected = mined(*corpus(seed), percent=1.5, count=3)
        texts = [[normalize(passage_texts[row]) for row in rows] for rows in found.negative_rows]
        assert texts == expected


if __name__ == "__main__":
    main()

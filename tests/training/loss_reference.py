"""The loss as loops over rows and pairs in float64 NumPy, and random ragged batches for it.

Written from the text of docs/training.md, without a look at the package's arrays: sets of ids, one
pair at a time.
"""

import numpy as np

MOST_JUDGED = 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_batch(seed, rows=8, positives=1, hard=2, width=8, tokens=None, guide=0, distilled=0):
    """Few ids, so that passages come again; empty slots; a row with no positive at all.

    The last `distilled` of the hard negatives are for distillation alone. `guide`: the width of a
    guide's vectors.

    Returns:
        queries, passages (float64) and a dictionary of the arrays that `batch_loss` takes.
    """
    rng = np.random.default_rng(seed)
    group = positives + hard
    if tokens is None:
        q, p = unit(rng.normal(size=(rows, width))), rng.normal(size=(rows, group, width))
        p[:, :positives] += 1.5 * q[:, None]  # some of them score highest
        p = unit(p.reshape(rows * group, width))
    else:
        q = unit(rng.normal(size=(rows, tokens, width)))
        p = unit(rng.normal(size=(rows * group, tokens + 1, width)))
    ids = rng.integers(0, 3 * rows, (rows, group))
    judged = np.full((rows, MOST_JUDGED), -1)
    for b in range(rows):
        ids[b, :positives] = rng.choice(3 * rows, positives, replace=False)
        extra = rng.integers(0, 3 * rows, MOST_JUDGED - positives)[: rng.integers(0, 3)]
        known = sorted({*ids[b, :positives].tolist(), *extra.tolist()})
        if b == 3:  # a positive that nobody judged, and that another row has too
            known = []
        judged[b, : len(known)] = known
    ids[:, positives:][rng.random((rows, hard)) < 0.25] = -1
    if positives > 1:
        ids[:, 1:positives][rng.random((rows, positives - 1)) < 0.4] = -1
    ids[rows - 2, :positives] = -1
    ids[1, positives:] = -1
    if hard:
        ids[4, -1] = ids[3, 0]
    teacher = rng.normal(size=(rows, group)) * 3
    teacher[rng.random((rows, group)) < 0.1] = -np.inf
    batch = {
        "passage_ids": ids.reshape(-1).astype(np.int32),
        "positive_ids": judged.astype(np.int32),
        "teacher_scores": np.where(ids < 0, -np.inf, teacher),
        "passage_weights": np.random.default_rng(seed).uniform(0.05, 1.0, ids.shape),
    }
    if distilled:
        flags = np.arange(group) >= group - distilled
        batch["passage_distilled"] = np.tile(flags, rows)
        ids[2, -1] = ids[5, positives]  # which is another row's negative
        batch["passage_ids"] = ids.reshape(-1).astype(np.int32)
        batch["teacher_scores"] = np.where(ids < 0, -np.inf, teacher)
    if guide:
        batch["query_guide"] = unit(rng.normal(size=(rows, guide)))
        batch["passage_guide"] = unit(rng.normal(size=(rows * group, guide)))
    if tokens is not None:
        for name, count, most in (
            ("query_real", rows, tokens),
            ("passage_real", len(p), tokens + 1),
        ):
            batch[name] = np.arange(most)[None] < rng.integers(1, most + 1, count)[:, None]
    return q, p, batch


def score(loss, batch, x, y, x_real, y_real):
    """Of a query x and a passage y, or of two of a kind."""
    if loss.scores == "inner":
        return float(x @ y)
    return sum(max(float(a @ b) for b in y[y_real]) for a in x[x_real])


class Reference:
    """One batch, looked at pair by pair."""

    def __init__(self, loss, q, p, batch):
        self.loss, self.q, self.p, self.batch = loss, q, p, batch
        self.rows, self.group = len(q), len(p) // len(q)
        self.ids = np.asarray(batch["passage_ids"]).reshape(self.rows, self.group)
        self.judged = [set(row[row >= 0].tolist()) for row in np.asarray(batch["positive_ids"])]
        self.slots = [
            [g for g in range(loss.num_positives) if self.ids[b, g] >= 0] for b in range(self.rows)
        ]
        alone = self.batch.get("passage_distilled", np.zeros(self.ids.size, bool))
        self.alone = np.asarray(alone).reshape(self.rows, self.group)
        self.valid = [b for b in range(self.rows) if self.slots[b]]

    def real(self, side, i):
        return self.batch[f"{side}_real"][i] if self.loss.scores == "maxsim" else None

    def qp(self, b, n):
        return score(
            self.loss, None, self.q[b], self.p[n], self.real("query", b), self.real("passage", n)
        )

    def qq(self, b, c):
        return score(
            self.loss, None, self.q[b], self.q[c], self.real("query", b), self.real("query", c)
        )

    def pp(self, m, n):
        real = self.real("passage", m), self.real("passage", n)
        return score(self.loss, None, self.p[m], self.p[n], *real)

    def judge(self, student, left, right):
        """The score a mask goes by; left and right are (side, index)."""
        if self.loss.mask_by == "student":
            return student
        return float(
            self.batch[f"{left[0]}_guide"][left[1]] @ self.batch[f"{right[0]}_guide"][right[1]]
        )

    def ceiling(self, b):
        if not self.loss.score_mask:
            return np.inf
        anchor = min(
            self.judge(
                self.qp(b, b * self.group + g), ("query", b), ("passage", b * self.group + g)
            )
            for g in self.slots[b]
        )
        if self.loss.score_mask == "margin":
            return anchor - self.loss.margin
        return anchor - abs(anchor) * (1 - self.loss.percent)

    def ids_of(self, b, slots):
        return {int(self.ids[b, g]) for g in slots}

    def negatives(self, b, slot):
        """(by query, by passage): score lists that stand against the positive in `slot` of b."""
        loss, group = self.loss, self.group
        own, ceiling = b * group + slot, self.ceiling(b)
        by_query, by_passage = [], []
        counts = {"negatives": 0, "masked": 0, "above": 0, "best": -np.inf}

        def add(where, value, judged, counted=False, weight=1.0):
            if judged >= ceiling:
                counts["above"] += counted
                return
            counts["negatives"] += counted
            counts["best"] = max(counts["best"], value if counted else -np.inf)
            where.append((value, weight))

        for g in range(loss.num_positives, group):
            n = b * group + g
            if self.ids[b, g] < 0 or self.alone[b, g]:
                continue
            if self.ids[b, g] in self.judged[b]:
                counts["masked"] += 1
                continue
            judged = self.judge(self.qp(b, n), ("query", b), ("passage", n))
            weight = self.batch["passage_weights"][b, g] if loss.weights else 1.0
            add(by_query, self.qp(b, n), judged if loss.mask_hard else -np.inf, True, weight)
        if not loss.in_batch:
            return by_query, by_passage, counts
        mine = self.ids_of(b, range(group)) - {-1}
        fitted = self.ids_of(b, np.flatnonzero(self.alone[b])) - {-1}
        for c in range(self.rows):
            if c == b:
                continue
            for g in range(group):
                n, i = c * group + g, int(self.ids[c, g])
                if i < 0 or self.alone[c, g]:
                    continue
                if i in self.judged[b]:
                    counts["masked"] += 1
                elif i not in fitted and not (loss.mask_own_duplicates and i in mine):
                    judged = self.judge(self.qp(b, n), ("query", b), ("passage", n))
                    add(by_query, self.qp(b, n), judged, True)
                same = i == self.ids[b, slot] or i in self.judged[b]
                if "passage_to_passage" in loss.terms and not same:
                    judged = self.judge(self.pp(own, n), ("passage", own), ("passage", n))
                    add(by_passage, self.pp(own, n), judged)
            if c not in self.valid:
                continue
            if "passage_to_query" in loss.terms and int(self.ids[b, slot]) not in self.judged[c]:
                judged = self.judge(self.qp(c, own), ("query", c), ("passage", own))
                add(by_passage, self.qp(c, own), judged)
            related = self.ids_of(c, self.slots[c]) & self.judged[b]
            related |= self.ids_of(b, self.slots[b]) & self.judged[c]
            if "query_to_query" in loss.terms and not related:
                judged = self.judge(self.qq(b, c), ("query", b), ("query", c))
                add(by_query, self.qq(b, c), judged)
        return by_query, by_passage, counts

    def row_loss(self, positives, found, which, temperature):
        """With the negatives of the query (0), the passage (1) or both."""

        def share(positives, negatives):
            top = np.exp(np.array(positives) / temperature).sum()
            values, weights = np.array(negatives).reshape(-1, 2).T
            if self.loss.hardness and len(values):
                harder = weights * np.exp(self.loss.hardness * values / temperature)
                weights = harder * weights.sum() / harder.sum()
            below = np.sum(weights * np.exp(values / temperature))
            return -np.log(top / (top + below))

        if self.loss.positives == "each":
            rows = zip(positives, found, strict=True)
            return np.mean([share([s], [x for w in which for x in f[w]]) for s, f in rows])
        pool = list(found[0][0]) if 0 in which else []
        pool += [x for f in found for x in f[1]] if 1 in which else []
        return share(positives, pool)

    def contrastive(self, temperature):
        loss, totals = self.loss, []
        stats = {"negatives": [], "masked": [], "above": [], "accuracy": []}
        for b in self.valid:
            positives = [self.qp(b, b * self.group + g) for g in self.slots[b]]
            found = [self.negatives(b, g) for g in self.slots[b]]
            found[0][2]["accuracy"] = max(positives) > found[0][2]["best"]
            for name in stats:
                stats[name].append(found[0][2][name])
            reverse = any(name.startswith("passage") for name in loss.terms)
            if loss.partition == "joint" or not reverse:
                totals.append(self.row_loss(positives, found, (0, 1), temperature))
            else:
                sides = [self.row_loss(positives, found, (i,), temperature) for i in (0, 1)]
                totals.append(np.mean(sides))
        weights = [self.row_weight(b) for b in self.valid]
        means = {name: np.average(values, weights=weights) for name, values in stats.items()}
        return np.average(totals, weights=weights), means

    def row_weight(self, b):
        """How much a row counts: as its positives do."""
        if not self.loss.weights:
            return 1.0
        return np.mean([self.batch["passage_weights"][b, g] for g in self.slots[b]])

    def distillation(self, temperature):
        loss = self.loss
        follows = loss.student_temperature or (
            loss.temperature if loss.distillation == "kl" else 1.0
        )
        teacher = np.asarray(self.batch["teacher_scores"])
        teacher = teacher / (loss.teacher_temperature or follows)
        divide = loss.student_temperature or (temperature if loss.distillation == "kl" else 1.0)
        kls, errors = [], []
        for b in range(self.rows):
            usable = [
                g for g in range(self.group) if self.ids[b, g] >= 0 and np.isfinite(teacher[b, g])
            ]
            student = {g: self.qp(b, b * self.group + g) / divide for g in usable}
            if len(usable) >= 2:
                t = np.exp([teacher[b, g] for g in usable])
                s = np.exp([student[g] for g in usable])
                t, s = t / t.sum(), s / s.sum()
                kls.append((t * np.log(t / s)).sum())
            for g in usable:
                for h in usable:
                    if g < loss.num_positives <= h:
                        want = teacher[b, g] - teacher[b, h]
                        errors.append((student[g] - student[h] - want) ** 2)
        return np.mean(kls if loss.distillation == "kl" else errors)


def vectors(loss, q, p, batch):
    """How far the student's vectors are from the guide's, of queries and of passages alike."""
    at = Reference(loss, q, p, batch)

    def far(x, y):
        if loss.vectors == "squared":
            return ((x - y) ** 2).sum()
        return 1 - (x @ y) / np.sqrt((x @ x) * (y @ y))

    of_queries = [far(q[b], batch["query_guide"][b]) for b in at.valid]
    there = [b * at.group + g for b in at.valid for g in range(at.group) if at.ids[b, g] >= 0]
    of_passages = [far(p[n], batch["passage_guide"][n]) for n in there]
    return (np.mean(of_queries) + np.mean(of_passages)) / 2


def reference(loss, q, p, batch, *, temperature=None, normalize=False):
    """(loss, counts of the widest embedding)."""
    temperature = temperature or loss.temperature
    dims = loss.dims or (q.shape[-1],)
    weights = np.array(loss.dim_weights or np.ones(len(dims)))
    values, counts = [], None
    for dim in dims:
        x, y = q[..., :dim], p[..., :dim]
        if normalize and dim < q.shape[-1]:
            x, y = unit(x), unit(y)
        at = Reference(loss, x, y, batch)
        value = 0.0
        if loss.contrastive_weight:
            contrastive, found = at.contrastive(temperature)
            value += loss.contrastive_weight * contrastive
            counts = found if dim == max(dims) else counts
        if loss.distillation:
            value += loss.distillation_weight * at.distillation(temperature)
        values.append(value)
    value = (np.array(values) * weights).sum() / weights.sum()
    if loss.vectors:
        value += loss.vectors_weight * vectors(loss, q, p, batch)
    return value, counts

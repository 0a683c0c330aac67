"""What the options of an evaluation take; see `nvret_jax.options`."""

from __future__ import annotations

from nvret_jax.options import whole

DEPTH = whole(100, 1_000_000, "passages; recall_100 and ndcg_cut_100 need 100")
GRADE = whole(1, what="a grade")

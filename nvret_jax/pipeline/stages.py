"""The stages, one file each, in the order they run.

Stages know each other only through artefacts. What several of them need (data, encoders, mesh) is
loaded once, on first use, by `nvret_jax.pipeline.state.Run`.
"""

from nvret_jax.pipeline import audit, embed, evaluate, export, mine, report, search, train

STAGES = {
    "embed": embed.STAGE,
    "search": search.STAGE,
    "audit": audit.STAGE,
    "mine": mine.STAGE,
    "train": train.STAGE,
    "evaluate": evaluate.STAGE,
    "export": export.STAGE,
    "report": report.STAGE,
}

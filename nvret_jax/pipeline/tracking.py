"""The trackers of a run (`track`), and the scores sent to them at its end."""

from __future__ import annotations

from nvret_jax import mesh as mesh_lib
from nvret_jax.pipeline.evaluate import read_scores
from nvret_jax.pipeline.state import Run
from nvret_jax.training.metric_writer import read_metrics
from nvret_jax.training.trackers import Trackers


def of(run: Run) -> Trackers | None:
    """The trackers named in its config, on the process that writes metrics."""
    config = run.config
    if not config.track or not mesh_lib.is_main():
        return None
    name, path = config.name, run.workdir.path
    return Trackers(config.track, name=name, folder=path, config=config.to_dict())


def send_scores(run: Run) -> None:
    """Sends the scores of a run that has evaluated, after its last step."""
    trackers = of(run)
    if trackers is None:
        return
    scores = read_scores(run)
    lines = read_metrics(run.workdir.metrics)
    step = max((line["step"] for line in lines), default=0)
    found = {f"evaluation/{name}": value for name, value in scores.after.items()}
    if scores.before is not None:
        found |= {f"evaluation/before/{name}": v for name, v in scores.before.items()}
    trackers.log(step, found)
    trackers.close()

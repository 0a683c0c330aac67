"""One undisturbed two-stage run, shared by the tests that disturb, continue or read one."""

import dataclasses
import pathlib

import pytest
import stage_worker
import tiny_project

from nvret_jax.training import loop


@dataclasses.dataclass
class Undisturbed:
    """Folders of the model, the run and the compiled programs, and the weights it ended with."""

    model: pathlib.Path
    root: pathlib.Path
    programs: pathlib.Path
    weights: dict


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    model, root, programs = (folder / name for name in ("model", "run", "programs"))
    tiny_project.make_model(model)
    with stage_worker.compiled_once(programs):
        trained = loop.train(
            stage_worker.encoder(model),
            stage_worker.stages(),
            stage_worker.places(root),
            stage_worker.dev_score,
        )
    return Undisturbed(model, root, programs, stage_worker.flat(trained))


@pytest.fixture(scope="module")
def programs(undisturbed):
    """Nothing that was compiled for the run is compiled again, here or in processes."""
    with stage_worker.compiled_once(undisturbed.programs):
        yield

"""Stages: where each starts, what is kept of it, what is not done again, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stage_worker
import tiny_backbones
import tiny_project
from flax import nnx

from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder, LoraConfig
from nvret_jax.training import initial, loop, merging, rates
from nvret_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, finished, make_sound

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def encoder(undisturbed):
    return stage_worker.encoder(undisturbed.model)


@pytest.fixture
def root(undisturbed, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(undisturbed.root, tmp_path / "run")
    return tmp_path / "run"


def still(name, begin):
    """One step that changes no weight."""
    config = stage_worker.config(learning_rate=0.0, steps=1, batch_size=4)
    return loop.Stage(name, config, lambda: stage_worker.Batches(3, 1, 4), begin)


def no_batches():
    raise AssertionError("a finished stage was made ready again")


def weights_at(encoder, folder, step):
    """What a checkpoint holds, by dotted path."""
    with jax.set_mesh(encoder.mesh), Checkpoints(folder) as checkpoints:
        state = checkpoints.load_params(step, nnx.split(encoder.model, nnx.Param, ...)[1])
    return {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(state)}


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, name)


def differ(ours, theirs):
    return any((ours[name] != value).any() for name, value in theirs.items())


def dev_lines(root, stage):
    found = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {
        x["step"]: x["dev_ndcg_cut_10"] for x in found if "loss" not in x and stage == x["stage"]
    }


def test_steps_count_on_over_the_stages_and_each_has_its_own_schedule(undisturbed):
    text = (undisturbed.root / "metrics.jsonl").read_text()
    found = [x for x in map(json.loads, text.splitlines()) if "loss" in x]
    assert [x["step"] for x in found] == list(range(1, 25))
    assert [x["stage"] for x in found] == ["warm"] * 12 + ["fine"] * 12
    rates = [x["learning_rate"] for x in found]
    assert rates[12] == rates[0] == pytest.approx(5e-4 / 1)  # 10 % of 12 steps to warm up: one
    assert rates[11] < 1e-4 > rates[23]
    assert "temperature" not in found[11]
    assert "temperature" in found[12]


def test_the_best_and_the_last_two_of_the_schedule_are_kept(undisturbed):
    for stage, before, schedule in ("warm", 0, [8, 12]), ("fine", 12, [10, 12]):
        scores = {at - before: v for at, v in dev_lines(undisturbed.root, stage).items()}
        scores.pop(0, None)
        best = max(scores, key=scores.get)
        assert best not in schedule  # or the test shows nothing
        with Checkpoints(undisturbed.root / "checkpoints" / stage) as checkpoints:
            assert checkpoints.best == (best, scores[best])
            assert checkpoints.scheduled == schedule
        folders = (undisturbed.root / "checkpoints" / stage).iterdir()
        assert sorted(int(p.name) for p in folders if p.is_dir()) == sorted([best, *schedule])


@pytest.fixture(scope="module")
def worse(encoder, tmp_path_factory):
    """A stage that only lowers the dev score, and one that goes on from the best of it."""
    root = tmp_path_factory.mktemp("worse")
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.5, 0.5, 0.1])

    def stages(begin="best"):
        config = stage_worker.config(eval_every=3)
        batches = stage_worker.Batches(1, stage_worker.STEPS, 8)
        return [
            loop.Stage("down", config, lambda: batches),
            loop.Stage("level", stage_worker.config(eval_every=4), lambda: batches, begin),
        ]

    loop.train(encoder, stages(), stage_worker.places(root), lambda _: next(scores))
    return root


def test_where_training_lowers_the_score_the_start_is_the_best(worse, encoder):
    start, folder = stage_worker.flat(encoder), worse / "checkpoints"
    for stage in ("down", "level"):  # the second: of equal scores the first is the best
        done = finished(folder / stage)
        assert (done.best, done.score) == (0, 0.5)
        found = stage_worker.flat(loop.load_trained(encoder, folder / stage, pick="best"))
        assert_same(found, start)
        last = stage_worker.flat(loop.load_trained(encoder, folder / stage))
        assert differ(start, last)
    assert_same(stage_worker.flat(loop.load_trained(encoder, folder, pick="best")), start)
    # The second stage began from the best of the first, which is its start.
    assert dev_lines(worse, "level").keys() == {16, 20, 24}
    # No checkpoint off the schedule is kept for a score below the start's.
    kept = sorted(int(p.name) for p in (folder / "down").iterdir() if p.is_dir())
    assert kept == [8, 12]


def test_a_lost_checkpoint_is_no_matter_where_the_start_is_the_best(worse, encoder, tmp_path):
    shutil.copytree(worse, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    make_sound(folder / "level", best=True)
    assert finished(folder / "level") is not None
    shutil.rmtree(folder / "level" / "8")
    found = loop.load_trained(encoder, folder, pick="best")
    assert_same(stage_worker.flat(found), stage_worker.flat(encoder))


def test_of_equal_scores_the_first_is_the_best(tmp_path):
    tree = nnx.state({"w": nnx.Param(jnp.zeros(2))})
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        for step, score in (1, 0.5), (2, 0.7), (3, None), (4, 0.7), (5, 0.6):
            checkpoints.save(step, tree, [jnp.zeros(1)], score=score)
        assert checkpoints.best == (2, 0.7)
        assert checkpoints.scheduled == [2, 5]


def test_a_finished_run_is_read_and_nothing_of_it_made_again(undisturbed, encoder, root):
    before = (root / "metrics.jsonl").read_bytes()
    stages = [loop.Stage(s.name, s.config, no_batches, s.start) for s in stage_worker.stages()]
    again = loop.train(encoder, stages, stage_worker.places(root), stage_worker.dev_score)
    assert_same(stage_worker.flat(again), undisturbed.weights)
    assert (root / "metrics.jsonl").read_bytes() == before
    loaded = loop.load_trained(encoder, root / "checkpoints")
    assert_same(stage_worker.flat(loaded), undisturbed.weights)


@pytest.mark.parametrize("begin", ["last", "best", "student"])
def test_a_stage_starts_from_what_it_names(undisturbed, encoder, root, begin):
    """The second stage, after a first that is finished and not made ready again."""
    shutil.rmtree(root / "checkpoints" / "fine")
    stages = [loop.Stage("warm", stage_worker.config(), no_batches), still("fine", begin)]
    found = loop.train(encoder, stages, stage_worker.places(root), stage_worker.dev_score)
    warm = undisturbed.root / "checkpoints" / "warm"
    with Checkpoints(warm) as checkpoints:
        steps = {"last": checkpoints.latest, "best": checkpoints.best[0]}
    assert steps["last"] != steps["best"]
    if begin == "student":
        expected = stage_worker.flat(encoder)
    else:
        expected = weights_at(encoder, warm, steps[begin])
    assert_same(stage_worker.flat(found), expected)
    # A start that was not scored yet is scored; the lines of the old second stage are gone.
    assert sorted(dev_lines(root, "fine")) == ([12, 13] if begin == "student" else [13])
    assert len(dev_lines(root, "warm")) == 5


@pytest.mark.parametrize("kind", ["model", "stage", "run"])
def test_a_run_starts_from_a_folder(undisturbed, encoder, tmp_path, kind):
    if kind == "model":
        folder = tmp_path / "other"
        tiny_project.make_model(folder, seed=5)
        expected = stage_worker.flat(stage_worker.encoder(folder))
    elif kind == "stage":
        folder = undisturbed.root / "checkpoints" / "warm"
        expected = weights_at(encoder, folder, 12)
    else:
        folder, expected = undisturbed.root / "checkpoints", undisturbed.weights
    assert differ(stage_worker.flat(encoder), expected)
    stages = [still("only", str(folder))]
    found = loop.train(encoder, stages, stage_worker.places(tmp_path / "run"))
    assert_same(stage_worker.flat(found), expected)


def test_what_cannot_be_a_stage_is_refused_before_anything_runs(encoder, tmp_path):
    places = stage_worker.places(tmp_path)

    def refused(stages, dev_score=stage_worker.dev_score):
        with pytest.raises(InputError) as error:
            loop.train(encoder, stages, places, dev_score)
        assert not (tmp_path / "metrics.jsonl").exists()
        return str(error.value)

    first = still("first", "last")
    assert "no stage comes before it" in refused([still("first", "best")])
    assert "no dev scores" in refused([first, still("second", "best")], None)
    assert "neither a folder nor one of" in refused([first, still("second", "frist")])
    assert "must be unique" in refused([first, first])
    assert "stage 0 is named '7'" in refused([still("7", "last")])


def test_a_model_of_another_shape_is_refused_and_the_weight_named(encoder, tmp_path):
    other = tiny_backbones.write(tmp_path / "other", "nv-retriever")
    with pytest.raises(InputError, match=r"has no weight|has a weight|has the shape"):
        loop.train(encoder, [still("only", str(other))], stage_worker.places(tmp_path / "run"))


def weights_file(step):
    return max((step / "params").rglob("d/*"), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_checkpoint_is_one_line_and_the_one_before_it_goes_on(
    undisturbed, encoder, root, capsys, finished
):
    fine = root / "checkpoints" / "fine"
    if not finished:
        (fine / "finished.json").unlink()
    flip(weights_file(fine / "12"))
    with pytest.raises(DamagedCheckpoint, match=r"fine/12 is damaged: 12/params/.* does not match"):
        loop.load_trained(encoder, fine)
    again = loop.train(
        encoder, stage_worker.stages(), stage_worker.places(root), stage_worker.dev_score
    )
    out = capsys.readouterr().out
    assert f"discarding checkpoint {fine}/12: 12/params" in out
    assert "resumed at step 10 of 12" in out
    assert_same(stage_worker.flat(again), undisturbed.weights)
    assert dev_lines(root, "fine") == dev_lines(undisturbed.root, "fine")


def test_a_damaged_checkpoint_that_nothing_needs_is_no_reason_to_train(encoder, root, capsys):
    fine = root / "checkpoints" / "fine"
    before = {p: p.read_bytes() for p in (fine / "12").rglob("*") if p.is_file()}
    shutil.rmtree(fine / "10")
    stages = [loop.Stage(s.name, s.config, no_batches, s.start) for s in stage_worker.stages()]
    loop.train(encoder, stages, stage_worker.places(root), stage_worker.dev_score)
    assert {p: p.read_bytes() for p in before} == before
    loop.train(
        encoder,
        stage_worker.stages(),
        stage_worker.places(root),
        stage_worker.dev_score,
        needs_last=2,
    )
    assert (fine / "10").exists()  # where it is needed, it is made again


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_score_is_one_line(encoder, root, damage):
    path = root / "checkpoints" / "fine" / "10" / "metrics" / "metrics"
    if damage == "cut":
        path.write_text(path.read_text()[:5])
    else:
        path.write_text(path.read_text().replace("true", "null"))
    with pytest.raises(InputError, match="fine/10 is damaged: 10/metrics/metrics does not match"):
        loop.load_trained(encoder, root / "checkpoints", merge_last=2)


def test_metrics_come_back_from_the_checkpoint(undisturbed, encoder, root):
    before = (root / "metrics.jsonl").read_bytes()
    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 0}\n')
    shutil.rmtree(root / "tensorboard")
    loop.restore_metrics(stage_worker.places(root), stage_worker.stages())
    assert (root / "metrics.jsonl").read_bytes() == before
    assert list((root / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("at", [12, 15])
def test_a_longer_stage_goes_on_from_where_it_ended(encoder, tmp_path, at):
    """The end of the shorter one is on no schedule of the longer one, or on all of them."""
    constant = {"schedule": "constant", "warmup": 3, "eval_every": 5, "checkpoint_every": 5}

    def trained(root, steps):
        config = stage_worker.config(steps=steps, **constant)
        stage = loop.Stage("only", config, lambda: stage_worker.Batches(1, steps, 8))
        places = stage_worker.places(root)
        return stage_worker.flat(loop.train(encoder, [stage], places, stage_worker.dev_score))

    trained(tmp_path / "longer", at)
    (tmp_path / "longer" / "checkpoints" / "only" / "finished.json").unlink()
    ours, theirs = trained(tmp_path / "longer", 20), trained(tmp_path / "once", 20)
    assert_same(ours, theirs)
    kept = []
    for root in (tmp_path / "longer", tmp_path / "once"):
        lines = [json.loads(x) for x in (root / "metrics.jsonl").read_text().splitlines()]
        kept.append([{k: v for k, v in x.items() if k not in rates.NAMES} for x in lines])
        with Checkpoints(root / "checkpoints" / "only") as checkpoints:
            kept[-1].append((checkpoints.scheduled, checkpoints.best))
    assert kept[0] == kept[1]


def test_what_a_killed_process_left_half_deleted_goes(undisturbed, root):
    warm = root / "checkpoints" / "warm"
    shutil.copytree(warm / "8", warm / "4")
    shutil.rmtree(warm / "4" / "params")
    with Checkpoints(warm, keep=2) as checkpoints:
        assert 4 not in checkpoints.scheduled
    assert not (warm / "4").exists()


def test_the_best_and_merged_checkpoints_are_loaded(undisturbed, encoder):
    folder = undisturbed.root / "checkpoints"
    with Checkpoints(folder / "fine") as checkpoints:
        best = checkpoints.best[0]
    found = loop.load_trained(encoder, folder, pick="best")
    assert_same(stage_worker.flat(found), weights_at(encoder, folder / "fine", best))

    ten, twelve = (weights_at(encoder, folder / "fine", step) for step in (10, 12))
    found = loop.load_trained(encoder, folder, merge_last=2, merge_weights=(0.25, 0.75))
    for name, value in stage_worker.flat(found).items():
        np.testing.assert_allclose(value, 0.25 * ten[name] + 0.75 * twelve[name], atol=1e-6)


def test_models_and_checkpoints_of_other_runs_are_merged_in(undisturbed, encoder):
    folder, warm = undisturbed.root / "checkpoints", undisturbed.root / "checkpoints" / "warm"
    others = [str(undisturbed.model), str(warm)]
    found = loop.load_trained(
        encoder, folder, merge_last=2, merge_with=others, merge_weights=(0.5, 0.3, 0.2)
    )
    ten, twelve = (weights_at(encoder, folder / "fine", step) for step in (10, 12))
    model, last = stage_worker.flat(encoder), weights_at(encoder, warm, 12)
    for name, value in stage_worker.flat(found).items():
        own = (ten[name] + twelve[name]) / 2
        expected = 0.5 * own + 0.3 * model[name] + 0.2 * last[name]
        np.testing.assert_allclose(value, expected, atol=1e-6)
    arc = loop.load_trained(encoder, folder, merge="slerp", merge_with=others[:1])
    name = "backbone.embeddings.word"
    expected = merging.slerp(twelve[name], model[name], np.float32(0.5))
    np.testing.assert_allclose(stage_worker.flat(arc)[name], expected, atol=1e-6)


def test_what_cannot_be_loaded_or_merged_is_refused(undisturbed, encoder, tmp_path):
    folder = undisturbed.root / "checkpoints"
    for told, where, changes in (
        ("holds no finished stage", tmp_path, {}),
        ("merge_last=3, but", folder, {"merge_last": 3}),
        ("merge_last=2 with pick='best'", folder, {"merge_last": 2, "pick": "best"}),
        (
            "2 weights for 3 models",
            folder,
            {"merge_last": 2, "merge_with": ["a", "b"], "merge_weights": (0.5, 0.5)},
        ),
        ("average or slerp", folder, {"merge_last": 2, "merge": "mean"}),
        ("pick='first'", folder, {"pick": "first"}),
    ):
        with pytest.raises(InputError) as error:
            loop.load_trained(encoder, where, **changes)
        assert told in str(error.value)


def test_a_model_gives_adapters_nothing(undisturbed, tmp_path):
    folder = tiny_backbones.write(tmp_path / "model", "nv-retriever")
    encoder = Encoder.from_pretrained(str(folder), lora=LoraConfig(rank=2, targets=("q_proj",)))
    with pytest.raises(InputError, match=r"name it as student\.model instead"):
        loop.train(encoder, [still("only", str(folder))], stage_worker.places(tmp_path / "run"))
    own = undisturbed.root / "checkpoints" / "warm"
    with pytest.raises(InputError, match="export first and merge models"):
        loop.load_trained(encoder, own, merge_with=[str(folder)])
    other = tmp_path / "other" / "warm"
    shutil.copytree(own, other)
    with pytest.raises(InputError, match="adapters of another run"):
        loop.load_trained(encoder, own, merge_with=[str(other)])


def test_scratch_is_new_weights_by_seed(encoder):
    found = stage_worker.flat(initial.randomised(encoder, 3))
    again = stage_worker.flat(initial.randomised(encoder, 3))
    assert_same(again, found)
    assert differ(stage_worker.flat(initial.randomised(encoder, 4)), found)
    assert found["backbone.layers.key_bias"].any() == 0
    assert (found["backbone.layers.mlp_norm_scale"] == 1).all()
    kernels = [value for name, value in found.items() if name.endswith("kernel")]
    for value in [*kernels, found["backbone.embeddings.word"]]:
        assert 0.018 < value.std() < 0.022
        assert abs(value.mean()) < 0.002
    assert differ({"a": kernels[0][0]}, {"a": kernels[0][1]})

"""Whether training helped on dev: which weights are compared, and in which words."""

import pytest

from nvret_jax.training.checkpoint import Finished
from nvret_jax.training.outcome import outcome


def lines(*scores, every=10):
    scored = [{"step": every * n, "dev_ndcg_cut_10": score} for n, score in enumerate(scores)]
    losses = [{"step": every * n + 1, "loss": 1.0} for n, _ in enumerate(scores)]
    return [line for pair in zip(scored, losses, strict=True) for line in pair]


@pytest.mark.parametrize(
    ("scores", "best", "pick", "helped", "words"),
    [
        (
            (0.4, 0.45, 0.42),
            10,
            "best",
            True,
            "dev nDCG@10 0.4000 before training, 0.4500 at step 10, the best",
        ),
        (
            (0.4, 0.45, 0.42),
            10,
            "last",
            True,
            "dev nDCG@10 0.4000 before training, 0.4200 at the end",
        ),
        (
            (0.4, 0.35, 0.32),
            0,
            "best",
            False,
            "training did not help on dev: nDCG@10 0.4000 before it, 0.3500 at best (step 10); "
            "result.pick='best' keeps the weights from before",
        ),
        (
            (0.4, 0.35, 0.32),
            0,
            "last",
            False,
            "training did not help on dev: nDCG@10 0.4000 before it, 0.3200 after it; "
            "result.pick='best' keeps the weights from before",
        ),
        (
            (0.4, 0.45, 0.4),
            10,
            "last",
            False,
            "training did not help on dev: nDCG@10 0.4000 before it, 0.4000 after it; "
            "result.pick='best' takes step 10, 0.4500",
        ),
    ],
)
def test_the_result_is_compared_with_the_model_before(scores, best, pick, helped, words):
    done = Finished(0, 10 * (len(scores) - 1), best, score=scores[best // 10])
    found = outcome(lines(*scores), done, pick)
    assert (found.helped, str(found)) == (helped, words)


def test_without_a_score_of_the_start_or_of_the_end_nothing_is_said():
    done = Finished(0, 20, 10, score=0.4)
    assert outcome(lines(0.4), done, "last") is None
    assert outcome(lines(0.4, 0.5)[1:], done, "last") is None
    assert outcome([], done, "last") is None
    assert outcome(lines(0.4, 0.5), None, "last") is None


def test_of_several_stages_the_last_one_gives_the_result():
    """Its start, the end of the stage before, may be what is kept; it is above the model's."""
    done = Finished(10, 10, 0, score=0.45)
    found = outcome(lines(0.4, 0.45, 0.42), done, "best")
    assert found.helped
    assert found.after == 0.45

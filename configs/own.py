"""Your own data: mine, train, evaluate and export with the model's own lengths.

    python -m nvret_jax.main --config=configs/own.py --workdir=runs/mine \\
        --config.data.train=beir:DIR --config.data.test=beir:DIR

What it does with data of any size:

    length      three passes over the training queries, but at least 100 steps, so that a few dozen
                queries are seen often enough to matter, and at most 1,000, so that a million ends
    dev         the split 'dev', or a tenth of the training queries, held out where there is none;
                none where that would be fewer than ten
    result      the weights that score best on dev, every 20 steps and before the first; where
                training does not help, those are the model as it was
    negatives   two of the four that are mined for each query, and those of the batch
    lengths     the model's own, of teacher and student
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "own"
    config.data.train = config.data.test = ""
    config.data.dev_share = 0.1
    config.result.pick = "auto"
    train = config.train
    train.epochs = 3.0
    train.min_steps, train.max_steps = 100, 1000
    train.batch_size = 32
    train.num_negatives = 2
    train.learning_rate = 2e-5
    train.eval_every = 20
    train.checkpoint_every = 100
    return config_lib.apply_arg(config, arg)

"""Your own data: mine, train, evaluate and export with the model's own lengths.

    python -m nvret_jax.main --config=configs/own.py --workdir=runs/mine \\
        --config.data.train=beir:DIR --config.data.test=beir:DIR

Three passes over the training queries, and at most 1,000 steps: small data sets are seen often
enough to matter, and training on large ones ends in bounded time. A dev split, if the data have
one, is scored during training.
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "own"
    config.data.train = config.data.test = ""
    train = config.train
    train.epochs = 3.0
    train.max_steps = 1000
    train.batch_size = 32
    train.num_negatives = 2
    train.learning_rate = 2e-5
    train.eval_every = 50
    train.checkpoint_every = 50
    return config_lib.apply_arg(config, arg)

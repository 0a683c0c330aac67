"""Your own data by the recipe that docs/choosing.md explains; needs a teacher that is an encoder.

    python -m nvret_jax.main --config=configs/recommended.py --workdir=runs/mine \\
        --config.data.train=beir:DIR --config.data.test=beir:DIR

Length, dev split, result and lengths of texts are those of configs/own.py. What differs:

    negatives   for each query the 8 hardest whose expected share of false ones is at most 20 %, by
                a risk that is fitted to the data (mining.risk), in the place of one percentage for
                all; this takes at least 100 training queries
    batch       a passage of another row is no negative if the teacher scores it above 95 % of the
                query's positive
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "recommended"
    config.data.train = config.data.test = ""
    config.data.dev_share = 0.1
    config.result.pick = "auto"
    config.mining.rule, config.mining.risk, config.mining.risk_budget = "naive", "auto", 0.2
    config.mining.num_negatives = 8
    train = config.train
    train.num_negatives = 8
    train.loss.score_mask, train.loss.percent, train.loss.mask_by = "percent", 0.95, "guide"
    train.epochs = 3.0
    train.min_steps, train.max_steps = 100, 1000
    train.batch_size = 32
    train.learning_rate = 2e-5
    train.eval_every = 20
    train.checkpoint_every = 100
    return config_lib.apply_arg(config, arg)

"""Score a model on a data set, without training.

python -m nvret_jax.main --config=configs/evaluate.py --config.data.test=beir:DIR --workdir=W
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "evaluate"
    config.stages = ("evaluate",)
    config.data.train = ""
    return config_lib.apply_arg(config, arg)

"""How many false negatives each mining rule leaves, on data with several positives per query.

    python -m nvret_jax.main --config=configs/audit.py --config.data.train=beir:DIR --workdir=W

One positive per query stays visible, the others are hidden, and those that are mined are counted
for every rule and value in the block `audit` (docs/audit.md). Nothing is trained. Teachers are
compared with `config_lib.add_teacher` and `mining.teachers`, as for mining.
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "audit"
    config.stages = ("embed", "search", "audit", "report")
    config.data.dev_split = config.data.test = ""
    return config_lib.apply_arg(config, arg)

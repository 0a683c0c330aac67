"""Mine, train, evaluate and export on Python docstrings: on a laptop, without GPU or download.

    python -m nvret_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Teacher and student are the same small model, so the whole gain comes from mining and training.
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "quickstart"
    for side in (config.teacher, config.student):
        side.query_length = 32
        side.passage_length = 64
    config.embed.chunk_rows = 1024
    config.train.batch_size = 32
    config.train.num_negatives = 1
    config.train.steps = 25
    config.train.learning_rate = 5e-5
    config.train.eval_every = 10
    config.train.checkpoint_every = 10
    config.train.dev_passages = 600
    config.train.dev_queries = 100
    # Short texts make training quick; the exported model reads as many tokens as the original.
    config.export.max_length = 256
    return config_lib.apply_arg(config, arg)

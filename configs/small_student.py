"""A small student of a larger teacher: contrast with mined negatives, then distillation.

    python -m nvret_jax.main --config=configs/small_student.py --workdir=runs/small_student \\
        --config.data.train=beir:DIR --config.data.test=beir:DIR --config.student.model=FOLDER

Stage 'contrast' is InfoNCE on negatives below 95 % of the positive; stage 'distill' continues from
there and also fits the teacher's scores of each row (KL). ':contrast' after the file's name leaves
the second stage out.
"""

from nvret_jax import config as config_lib


def get_config(arg: str = ""):
    """The config; ':contrast' has only its first stage, ':smoke' shrinks it to a minute."""
    config = config_lib.base()
    config.name = "small_student"
    for side in (config.teacher, config.student):
        side.query_length = 48
        side.passage_length = 96
    train = config.train
    train.batch_size = 32
    train.num_negatives = 2
    train.steps = 80
    train.learning_rate = 1e-4
    train.eval_every = 40
    train.checkpoint_every = 40
    config_lib.add_stage(config, "contrast")
    if arg == "contrast":
        return config
    config_lib.add_stage(
        config,
        "distill",
        steps=40,
        learning_rate=2e-5,
        # Sharper than the student's 0.05: mined negatives score just below the positive.
        loss={"distillation": "kl", "teacher_temperature": 0.02},
    )
    return config_lib.apply_arg(config, arg)

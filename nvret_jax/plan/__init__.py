"""Know before you rent: compiles the real steps for chips nobody owns, and adds them up.

    pip install libtpu
    python -m nvret_jax.main --config=configs/nv_retriever_v1.py --plan=v5p:4x4x4
    python -m nvret_jax.plan --topology=v5e:4x4 --passages=100000000 --width=1024 \\
        --dtype=bfloat16 --queries=4096 --k=100

The first plans training, embedding and search of any config, the second a search alone. libtpu
compiles for a TPU without one, and JAX's CUDA plugin for GPUs without one; what comes out is the
program a chip would run, and its memory is XLA's own account. No weight and no tokenizer is read:
shapes come from a model's config.json, or from a table of well-known ones.

    chips.py    which chips there are, and a mesh of them
    models.py   a config's encoders as shapes with shardings
    steps.py    what a compiled step is; those that embed and search
    training.py the training step
    lengths.py  lengths of a config's own texts
    flops.py    operations that a program does
    hlo.py      bytes and collectives of a compiled program, loops counted as often as they run
    report.py   all of it in words, and what to change where it does not fit
    command.py  a whole config, and a search alone: what the commands call
"""

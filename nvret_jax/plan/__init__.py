"""Plans: compiles the real steps for absent chips, and adds up what they take.

    pip install libtpu
    python -m nvret_jax.main --config=configs/nv_retriever_v1.py --plan=v5p:4x4x4
    python -m nvret_jax.plan --topology=v5e:4x4 --passages=100000000 --width=1024 \\
        --dtype=bfloat16 --queries=4096 --k=100

The first plans training, embedding and search of any config, the second only a search. libtpu
compiles for a TPU without one, and JAX's CUDA plugin for GPUs without one; the result is the
program a chip would run, and its memory is XLA's own account. Neither weights nor a tokenizer are
read: shapes come from a model's config.json, or from a table of well-known ones.

    chips.py    the known chips, and a mesh of them
    models.py   a config's encoders as shapes with shardings
    steps.py    the definition of a compiled step; those that embed and search
    training.py the training step
    lengths.py  lengths of a config's own texts
    flops.py    operations of a program
    hlo.py      bytes and collectives of a compiled program, loops multiplied by their length
    report.py   the plan in words, and what to change if it does not fit
    command.py  plans of a whole config and of a search, for the commands
"""

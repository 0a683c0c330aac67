"""Train text retrievers in JAX, after NV-Retriever (arXiv 2407.15831).

The Python interface is `nvret_jax.api`; the command is `python -m nvret_jax.main`.
"""

__version__ = "0.1.0"

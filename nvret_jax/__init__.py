"""Train text retrievers in JAX, after NV-Retriever (arXiv 2407.15831)."""

__version__ = "0.1.0"

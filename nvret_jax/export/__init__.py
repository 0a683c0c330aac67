"""Writing an encoder as a folder that other tools load."""

from nvret_jax.export.sentence_transformers import export

__all__ = ["export"]

"""Shared by all tests: one CPU device, no network, helpers beside the tests importable."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile far more than they compute: the quick code generator takes a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
for folder in ("models", "pipeline", "search", "plan", "docs"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The training step takes seconds to compile; later runs take it from here."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()

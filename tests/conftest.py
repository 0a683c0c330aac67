"""Shared by all tests: one CPU device, no network, helpers beside the tests importable."""

import os
import pathlib
import signal
import sys

import pytest

# A shell that starts tests in the background has them ignore Ctrl-C, and nohup has them ignore
# SIGHUP; processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What one test has compiled is there for all others, in this process or another.
cache = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
for folder in (".", "models", "pipeline", "search", "plan", "docs", "data"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))
from virtual_devices import QUICK_COMPILE  # noqa: E402

# Tests compile far more than they compute. `XLA_FLAGS= pytest` compiles as users' programs are.
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILE)


@pytest.fixture(scope="module")
def compiled():
    """The training step takes seconds to compile; what takes a tenth of that is kept, too."""
    import jax

    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.1)
    yield
    jax.config.update(name, before)

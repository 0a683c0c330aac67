"""Shared by all tests: one CPU device, no network, helpers beside the tests importable."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile far more than they compute: the quick code generator takes a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
for folder in ("models", "pipeline", "search", "plan", "docs"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

"""A tiny project without mistakes, and a cache for what its runs compile."""

import jax
import pytest
import tiny_project
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The training step takes seconds to compile; later runs take it from here."""
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


@pytest.fixture(scope="module")
def pristine(compiled, tmp_path_factory):
    """A project without mistakes."""
    folder = tmp_path_factory.mktemp("pristine")
    tiny_project.make(folder)
    (folder / "file").write_text("")
    (folder / "w").mkdir()
    return folder

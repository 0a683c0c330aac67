"""A tiny project without mistakes."""

import pytest
import tiny_project


@pytest.fixture(scope="module")
def pristine(compiled, tmp_path_factory):
    """A project without mistakes."""
    folder = tmp_path_factory.mktemp("pristine")
    tiny_project.make(folder)
    (folder / "file").write_text("")
    (folder / "w").mkdir()
    return folder

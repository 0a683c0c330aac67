"""Folders that change while they are listed."""

import os

from nvret_jax.files.atomic import files_below


def test_a_folder_that_is_renamed_while_its_parent_is_listed_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "steady").write_text("")
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "file").write_text("")
    scandir = os.scandir

    def renamed_first(folder):
        if os.fspath(folder).endswith(".partial"):
            os.replace(folder, tmp_path.parent / "elsewhere")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", renamed_first)
    assert files_below(tmp_path) == ["steady"]
    assert (tmp_path.parent / "elsewhere" / "file").exists()

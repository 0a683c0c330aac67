"""What pyproject.toml, which holds the metadata, cannot say: `configs/` goes into the wheel."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies configs/ to nvret_jax/configs, where `--config=configs/…` finds it once installed."""

    def run(self):
        super().run()
        if self.editable_mode:  # the checkout itself is used
            return
        target = pathlib.Path(self.build_lib) / "nvret_jax" / "configs"
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((ROOT / "configs").glob("*.py")):
            shutil.copyfile(file, target / file.name)


setup(cmdclass={"build_py": BuildWithConfigs})

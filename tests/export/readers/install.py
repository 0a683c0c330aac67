"""The readers of an export, installed one beside the other: `make readers`.

    python tests/export/readers/install.py .readers

Each requirement goes into a folder, without its dependencies: torch, numpy and the like are those
of the environment that runs the tests. A reader is a list of such folders, put in front of the
environment's own packages. What is there already is not installed again.
"""

import pathlib
import subprocess
import sys

# Folder -> what `pip install --no-deps` puts there.
PACKAGES = {
    # With what its huggingface_hub needs, and the last datasets that gets along with that one.
    "transformers-4.57": [
        "transformers==4.57.6",
        "huggingface_hub==0.36.2",
        "tokenizers==0.22.1",
        "datasets==4.0.0",
        "requests",
        "urllib3",
        "charset-normalizer",
        "idna",
        "certifi",
    ],
    "sentence-transformers-2.7": ["sentence-transformers==2.7.0"],
    "sentence-transformers-3.4": ["sentence-transformers==3.4.1"],
    "sentence-transformers-5.3": ["sentence-transformers==5.3.0"],
    "pylate": ["pylate>=1.6"],
}
# Name -> the folders it consists of; the rest comes from the environment, which has the newest
# sentence-transformers and transformers.
READERS = {
    "sentence-transformers 2.7, transformers 4.57": [
        "sentence-transformers-2.7",
        "transformers-4.57",
    ],
    "sentence-transformers 3.4, transformers 4.57": [
        "sentence-transformers-3.4",
        "transformers-4.57",
    ],
    "sentence-transformers 5.3, transformers 4.57": [
        "sentence-transformers-5.3",
        "transformers-4.57",
    ],
    "sentence-transformers 5.3, transformers 5": ["sentence-transformers-5.3"],
    "newest sentence-transformers, transformers 5": [],
    "newest PyLate, transformers 4.57": [
        "pylate",
        "sentence-transformers-5.3",
        "transformers-4.57",
    ],
    "newest PyLate, transformers 5": ["pylate", "sentence-transformers-5.3"],
}


def stamp(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that says what is installed in a folder; without it nothing is."""
    return root / name / ".installed"


def install(root: pathlib.Path) -> None:
    """Installs what is missing or was installed from other requirements."""
    for name, requirements in PACKAGES.items():
        wanted = "\n".join(requirements)
        done = stamp(root, name)
        if done.exists() and done.read_text() == wanted:
            continue
        print(f"installing {', '.join(requirements)}", flush=True)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        # Most of what is installed is never imported.
        command += [
            "--no-deps",
            "--no-compile",
            "--upgrade",
            "--target",
            str(root / name),
            *requirements,
        ]
        if subprocess.run(command).returncode:
            sys.exit(
                f"error: {', '.join(requirements)} could not be installed; pip's words are above"
            )
        done.write_text(wanted)


if __name__ == "__main__":
    install(pathlib.Path(sys.argv[1]))

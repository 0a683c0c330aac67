"""What can be done to the files of a project or a workdir, as functions of its folder."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable

import safetensors.numpy

Break = Callable[[pathlib.Path], object]


def write(name: str, content: str | bytes) -> Break:
    """Makes or replaces a file."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda project: (project / name).write_bytes(data)


def remove(name: str) -> Break:
    def act(project):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def line(name: str, number: int, content: str | bytes) -> Break:
    """Replaces a line, counted from 1."""
    data = content if isinstance(content, bytes) else content.encode()

    def act(project):
        lines = (project / name).read_bytes().split(b"\n")
        lines[number - 1] = data
        (project / name).write_bytes(b"\n".join(lines))

    return act


def cut(name: str, size: int) -> Break:
    return lambda project: os.truncate(project / name, size)


def weights(change: Callable[[dict], object]) -> Break:
    """Changes the tensors of the model."""

    def act(project):
        path = project / "model" / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        change(tensors)
        safetensors.numpy.save_file(tensors, path, {"format": "pt"})

    return act

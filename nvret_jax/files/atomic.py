"""Atomic writes, safe removal, and hashes of files.

Nothing here writes through a link: the new file replaces a link of that name.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from etils import epath

from nvret_jax.errors import InputError, from_system
from nvret_jax.files import paths

_THREADS = 8  # hashing releases the GIL, and disks are faster with several readers
_PERMISSIONS = 0o777


def write_atomic(path: epath.PathLike, data: str | bytes) -> None:
    """Writes a file so that it is either the old one or the whole new one."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{path.name}.partial"
    remove(aside)
    # Exclusively: a link created there in the meantime is not followed.
    with open(aside, "xb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    aside.replace(path)


def remove(path: epath.PathLike) -> None:
    """Removes a file, a link or a folder with its content; a missing path is fine."""
    path = os.fspath(path)
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


@contextlib.contextmanager
def whole_file(path: epath.Path) -> Iterator[IO[bytes]]:
    """An open file that gets the name `path` once the block ends without an exception.

    Raises:
        InputError: the path cannot be written, or a text to be written is not Unicode.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file to write")
    aside = path.parent / f"{path.name}.partial"
    with cleaned(path, aside):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
        aside.replace(path)


@contextlib.contextmanager
def whole_folder(path: epath.Path) -> Iterator[epath.Path]:
    """An empty folder that gets the name `path` once the block ends without an exception.

    Raises:
        InputError: `path` already exists, or it cannot be written.
    """
    path = paths.replaceable(path, "target")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: already exists and is not an empty folder; choose a new one")
    aside = path.parent / f"{path.name}.partial"
    with cleaned(path, aside):
        remove(aside)
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            path.rmdir()
        aside.rename(path)


@contextlib.contextmanager
def cleaned(path: epath.Path, aside: epath.Path) -> Iterator[None]:
    """Removes `aside` where the block fails; errors of the file system become one line.

    Args:
        path: what the block makes, for the message.
        aside: where it writes until it is whole.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        _discard(aside)
        raise InputError(f"{path}: cannot be written, a text is not Unicode ({error})") from None
    except OSError as error:
        _discard(aside)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    except BaseException as error:
        _discard(aside)
        if isinstance(error, Exception) and (found := from_system(error, str(path))):
            raise found from None  # of a library that writes
        raise


def _discard(path: epath.Path) -> None:
    with contextlib.suppress(OSError):
        remove(path)


def write_checked(path: epath.PathLike, write: Callable[[epath.Path], object]) -> None:
    """Lets `write` make a file, renames it, and stores its sha256 next to it. See `is_whole`."""
    path = epath.Path(path)
    aside = path.parent / f"{path.name}.aside"
    remove(aside)
    write(aside)
    write_atomic(path.parent / f"{path.name}.sha256", sha256(aside))
    aside.replace(path)


def is_whole(path: epath.PathLike) -> bool:
    """Whether a file exists, unchanged since `write_checked` wrote it."""
    path = epath.Path(path)
    try:
        return (path.parent / f"{path.name}.sha256").read_text() == sha256(path)
    except (OSError, ValueError):
        return False


def files_below(folder: epath.PathLike) -> list[str]:
    """The files of a folder, by path below it, sorted."""
    folder = os.fspath(folder)
    found = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(file, folder) for file in found)


def sha256(path: epath.PathLike) -> str:
    """sha256 (hex) of a file as it is on disk now."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[epath.PathLike]) -> list[str]:
    """`sha256` of several files, in parallel."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(sha256, paths))


def give_usual_modes(folder: epath.PathLike) -> None:
    """Gives all files of a folder the permissions of a new file (by the umask).

    Some libraries write files that only their owner can read.
    """
    probe = os.path.join(os.fspath(folder), "mode.partial")
    with open(probe, "xb") as file:
        usual = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & _PERMISSIONS
    os.unlink(probe)
    for name in files_below(folder):
        path = os.path.join(os.fspath(folder), name)
        if os.path.islink(path):
            continue
        if stat.S_IMODE(os.stat(path).st_mode) != usual:
            with contextlib.suppress(PermissionError):  # of another owner
                os.chmod(path, usual)


def move_contents(source: epath.PathLike, target: epath.PathLike) -> None:
    """Moves everything in one folder into another one of the same file system."""
    for name in os.listdir(source):
        if os.fspath(epath.Path(source) / name) != os.fspath(target):
            os.rename(epath.Path(source) / name, epath.Path(target) / name)

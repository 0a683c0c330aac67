"""Paths given by users: one rule for all of them.

'~' is the user's home; a path is on a file system of this machine. Names with a scheme (gs://,
s3://, https://, file://) are refused with the key that holds them: artefacts are renamed, and large
files memory-mapped, which object stores do not support.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile

from etils import epath

from nvret_jax.errors import InputError

# Also after prefixes of this package, such as "pydocs:gs://". Elsewhere "//" is one slash.
_SCHEME = re.compile(r"(?:[A-Za-z0-9+.-]*:)*?([A-Za-z][A-Za-z0-9+.-]*://)")


def local(path: os.PathLike | str, key: str) -> epath.Path:
    """A user's path, to be opened.

    Args:
        path: may begin with '~' or '~name'.
        key: its key, such as 'mining.verdicts' or '--workdir'; for the message.

    Returns:
        The path, with '~' replaced by the home.

    Raises:
        InputError: it has a scheme, the home of an unknown user, or invalid characters.
    """
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    shown = text if len(text) <= 200 else f"{text[:100]}… ({len(text)} characters)"
    shown = shown.encode("utf-8", "backslashreplace").decode()
    if match := _SCHEME.match(text):
        raise InputError(
            f"{key}: {shown}: expected a path on this machine, got a URL ({match[1]}); copy the "
            f"files here, or mount the store, and give that path"
        )
    try:
        known = "\0" not in os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        known = False
    if not known:
        raise InputError(f"{key}: {shown!r}: a path cannot contain NUL or half of a surrogate pair")
    home = os.path.expanduser(re.sub("://+", ":/", text))
    if home.startswith("~"):
        raise InputError(f"{key}: {shown}: no such user; for a folder of that name write ./{shown}")
    return epath.Path(home)


def replaceable(path: os.PathLike | str, key: str) -> epath.Path:
    """The absolute path of a folder that is to be made, or replaced as a whole.

    Raises:
        InputError: as `local`; an empty path; the root, the home, or the working directory or a
            folder around it, whose content nothing may replace.
    """
    if not os.fspath(path):
        raise InputError(f"{key}: the path is empty; name a folder")
    found = os.path.abspath(local(path, key))
    here = os.path.join(os.path.realpath(os.getcwd()), "")
    real = os.path.realpath(found)
    inside = here.startswith(os.path.join(real, ""))
    if inside or real == os.path.realpath(os.path.expanduser("~")):
        what = "the working directory, or a folder around it" if inside else "your home"
        other = os.path.join(path, "model")
        raise InputError(f"{key}: {path} is {what}; name another folder, such as {other}")
    return epath.Path(found)


def cache(name: str) -> epath.Path | None:
    """A cache folder, in the user's home or, failing that, among temporary files; None: neither."""
    places = [os.path.join(os.path.expanduser("~"), ".cache", "nvret_jax")]
    with contextlib.suppress(OSError):
        places.append(os.path.join(tempfile.gettempdir(), f"nvret_jax-{os.getuid()}"))
    for place in places:
        with contextlib.suppress(OSError):
            os.makedirs(place, mode=0o700, exist_ok=True)
            mine = os.stat(place).st_uid == os.getuid()
            if mine and os.access(place, os.W_OK | os.X_OK):
                os.makedirs(os.path.join(place, name), exist_ok=True)
                return epath.Path(place) / name
    return None

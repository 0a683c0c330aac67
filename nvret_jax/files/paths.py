"""Paths that a user gives: one rule for all of them.

'~' is the user's home; a path lies on a file system of this machine. Names with a scheme (gs://,
s3://, https://, file://) are refused with the key that holds them: artefacts are renamed, and large
files mapped into memory, which object stores do not offer.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile

from etils import epath

from nvret_jax.errors import InputError

# Behind words of this package, too, such as "pydocs:gs://". Elsewhere "//" is one slash.
_SCHEME = re.compile(r"(?:[A-Za-z0-9+.-]*:)*?([A-Za-z][A-Za-z0-9+.-]*://)")


def local(path: os.PathLike | str, key: str) -> epath.Path:
    """A path of a user, to be opened.

    Args:
        path: may begin with '~' or '~name'.
        key: what the user knows it by, such as 'mining.verdicts' or '--workdir'; for the message.

    Returns:
        The path, with the home in place of '~'.

    Raises:
        InputError: it has a scheme, the home of an unknown user, or characters that no path can
            have.
    """
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    shown = text if len(text) <= 200 else f"{text[:100]}… ({len(text)} characters)"
    shown = shown.encode("utf-8", "backslashreplace").decode()
    if match := _SCHEME.match(text):
        raise InputError(
            f"{key}: {shown}: expected a path on this machine, got a {match[1]} address; copy the "
            "files here, or mount the store, and give that path"
        )
    try:
        known = "\0" not in os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        known = False
    if not known:
        raise InputError(f"{key}: {shown!r}: a path has no NUL and no half of a surrogate pair")
    home = os.path.expanduser(re.sub("://+", ":/", text))
    if home.startswith("~"):
        raise InputError(f"{key}: {shown}: no such user; a folder of that name here is ./{shown}")
    return epath.Path(home)


def cache(name: str) -> epath.Path | None:
    """A folder for what can be made again, in the user's home or, failing that, for this user
    among temporary files; None where neither can be written."""
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

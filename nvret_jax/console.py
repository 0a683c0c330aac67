"""What a run tells its user: one line at a time, from one process."""

from __future__ import annotations

from nvret_jax import mesh as mesh_lib


def say(text: str) -> None:
    """Prints a line on the main process, at once."""
    if mesh_lib.is_main():
        print(text, flush=True)

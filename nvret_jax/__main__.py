"""`python -m nvret_jax COMMAND …`; see `main.py`."""

from nvret_jax.main import cli

if __name__ == "__main__":
    cli()

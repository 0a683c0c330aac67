"""`python -m nvret_jax`: the same as `python -m nvret_jax.main`."""

from nvret_jax.main import cli

if __name__ == "__main__":
    cli()

"""One command that says what a machine's accelerators do with this package: `make accelerator`."""

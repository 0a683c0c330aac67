"""The loss: its terms, their options, and the ring that distributes them over devices."""

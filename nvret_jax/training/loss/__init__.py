"""The loss: its terms, their options, and the ring that spreads them over devices."""

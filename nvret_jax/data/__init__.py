"""Text in: datasets, tokens, and batches of few shapes."""

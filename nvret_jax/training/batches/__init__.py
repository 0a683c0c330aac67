"""Batches: whose rows come when, which texts are in them, and at what lengths."""

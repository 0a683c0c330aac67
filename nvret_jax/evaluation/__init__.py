"""Scoring a ranking against judgments, and writing both down in formats other tools read."""

"""Datasets: readers of text, splits, and the formats of other tools."""

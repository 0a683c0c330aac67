"""Batches: the order of rows and data sets, their texts, and the lengths of the texts."""

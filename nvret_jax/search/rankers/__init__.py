"""Rankers of passages for queries: vectors, BM25, random draws, run files."""

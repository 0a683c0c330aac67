"""Scores rankings by judgments, and writes both in formats that other tools read."""

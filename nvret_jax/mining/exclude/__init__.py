"""Passages that can never be negatives, whatever their score."""

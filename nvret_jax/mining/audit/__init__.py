"""Estimates of how many mined negatives are false."""

"""Attention, and the kernels that compute it on each platform."""

"""Artefacts: made whole, known by a fingerprint, and kept in a workdir."""

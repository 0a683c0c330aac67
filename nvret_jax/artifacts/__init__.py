"""Artefacts: written whole, identified by a fingerprint, and kept in a workdir."""

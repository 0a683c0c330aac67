"""Exact search over vectors: on device, streamed, and by FAISS."""

"""What ranks passages for queries: vectors, BM25, random draws, files of others."""

"""Files: paths, whole-or-not-at-all writes, and a reader for each kind of file."""

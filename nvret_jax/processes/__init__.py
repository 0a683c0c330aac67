"""The processes of a command: signals, streams, peers, progress."""

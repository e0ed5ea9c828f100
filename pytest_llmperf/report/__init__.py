"""One file per reader: each reads the same `Result` objects."""

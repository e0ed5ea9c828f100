"""One file per optimization; `base` holds the protocol, `registry` the list."""

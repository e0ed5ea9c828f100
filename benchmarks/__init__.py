"""Measurements of the project itself; each is a script whose --help says what it shows."""

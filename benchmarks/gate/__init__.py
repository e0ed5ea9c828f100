"""Measurements of the gate itself."""

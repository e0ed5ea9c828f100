"""Measuring: worker processes and what one of them measures of a workload."""

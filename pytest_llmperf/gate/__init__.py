"""The gate: one rule, the intervals that it judges, and the baselines that they are made from."""

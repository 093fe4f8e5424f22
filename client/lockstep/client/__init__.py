"""Lockstep's client: submit jobs, follow them, read their metrics."""

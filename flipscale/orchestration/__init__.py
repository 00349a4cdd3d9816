"""Runs as a whole: segments, their ledger."""

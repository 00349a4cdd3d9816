"""Runs on a cluster: submission, the checks before it, one start's life, and status from outside."""

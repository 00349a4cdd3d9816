"""Checks of a job, a cluster, a machine and its nodes; each gives findings."""

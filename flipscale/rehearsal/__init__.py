"""Runs a job's real training step on fake tensors, at its real size, before it costs a GPU-hour."""

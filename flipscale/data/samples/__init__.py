"""Samples: positions in, tensors out."""

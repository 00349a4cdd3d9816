"""Shards: the bytes of the samples, and their index."""

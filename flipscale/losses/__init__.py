"""The contrastive losses: exact over the global batch, computed in tiles."""

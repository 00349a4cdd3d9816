"""The sample order: which sample is read at which position."""

"""A rendered data set with captions."""

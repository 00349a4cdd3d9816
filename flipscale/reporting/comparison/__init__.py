"""The page of several models: their evaluation on the same data, and the sections that compare them."""

"""The page of one run: what is gathered from its directory, and the sections that show it."""

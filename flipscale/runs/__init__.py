"""The run directory: every file of a run has one owner and one typed reader in this package."""

"""The sharding of a model and its optimizer over processes."""

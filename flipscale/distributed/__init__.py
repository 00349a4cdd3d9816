"""Which process this is among all of a run, and how the processes agree."""

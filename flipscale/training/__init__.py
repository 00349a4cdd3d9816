"""The training of a job: its data, its model in each phase, and the loop over its steps."""

"""Hand a job over: its resources, its batch script, its submission, and what starts on the nodes."""

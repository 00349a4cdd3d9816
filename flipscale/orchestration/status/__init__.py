"""A run seen from outside: its state, its history, its processes and jobs, and how to stop it."""

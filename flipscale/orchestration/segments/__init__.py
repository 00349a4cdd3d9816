"""One start of a run: its requests to stop, its watchdog, its end, and the next start."""

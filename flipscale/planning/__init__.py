"""What a job will do and need before it runs: FLOPs, memory, time, and whether it fits."""

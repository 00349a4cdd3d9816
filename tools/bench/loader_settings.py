"""The settings of the loader's benchmark, which both loaders share."""

from __future__ import annotations

from flipscale.config import Augmentation

SHARDS = 6
SHARD_SAMPLES = 64
SIDE = 512  # pixels of the stored images
OUTPUT = 224  # pixels of the views
VIEWS = Augmentation()  # area 0.5 to 1
BATCH = 64
LANES = 64
LIMIT = 100_000_000  # pixels of the largest image
BUFFER = 200  # samples among which OpenCLIP shuffles

WARM_UP = 3  # rounds before the clock starts
PROFILED = 3  # batches under the profiler
PROFILE_ROWS = 8
DECODER_ROUNDS = 7

RESUME_SHARDS = 1000
RESUME_SAMPLES = 8
RESUME_TURNS = 9

"""Job and site files: typed, strict, in units that people use."""

from flipscale.config.job import (
    Augmentation,
    Cache,
    Checkpoints,
    Cluster,
    Data,
    Evaluation,
    Job,
    Logging,
    Loss,
    Model,
    Optimizer,
    Phase,
    Sharding,
    TokenizerSource,
)
from flipscale.config.loading import dump_job, job_schema, load_evaluation, load_job, load_site
from flipscale.config.site import Site
from flipscale.config.units import (
    Cadence,
    parse_bytes,
    parse_cadence,
    parse_count,
    parse_duration,
)

__all__ = [
    "Augmentation",
    "Cache",
    "Cadence",
    "Checkpoints",
    "Cluster",
    "Data",
    "Evaluation",
    "Job",
    "Logging",
    "Loss",
    "Model",
    "Optimizer",
    "Phase",
    "Sharding",
    "Site",
    "TokenizerSource",
    "dump_job",
    "job_schema",
    "load_evaluation",
    "load_job",
    "load_site",
    "parse_bytes",
    "parse_cadence",
    "parse_count",
    "parse_duration",
]

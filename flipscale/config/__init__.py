"""Job and site files: typed, strict, in units that people use."""

from flipscale.config.caption_sources import CaptionSource, parse_caption_source
from flipscale.config.data import Augmentation, Cache, Data, TokenizerSource
from flipscale.config.evaluation import Evaluation, ZeroShot, ZeroShotMetric
from flipscale.config.image_extensions import IMAGE_EXTENSIONS, parse_image_extensions
from flipscale.config.job import Job
from flipscale.config.loading import dump_job, load_evaluation, load_job, load_site
from flipscale.config.model import Loss, Model
from flipscale.config.schema import job_schema
from flipscale.config.site import Site
from flipscale.config.training import Checkpoints, Cluster, Hang, Logging, Optimizer, Phase, Sharding
from flipscale.config.units import Cadence, parse_bytes, parse_cadence, parse_count, parse_duration

__all__ = [
    "IMAGE_EXTENSIONS",
    "Augmentation",
    "Cache",
    "Cadence",
    "CaptionSource",
    "Checkpoints",
    "Cluster",
    "Data",
    "Evaluation",
    "Hang",
    "Job",
    "Logging",
    "Loss",
    "Model",
    "Optimizer",
    "Phase",
    "Sharding",
    "Site",
    "TokenizerSource",
    "ZeroShot",
    "ZeroShotMetric",
    "dump_job",
    "job_schema",
    "load_evaluation",
    "load_job",
    "load_site",
    "parse_bytes",
    "parse_cadence",
    "parse_caption_source",
    "parse_count",
    "parse_duration",
    "parse_image_extensions",
]

"""From a job to the parts that training runs on: data, model, and what was there before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from flipscale.budget import Budget, check_world_size
from flipscale.config import Job
from flipscale.data.order.mixture import Mixture, job_sources, shards_by_source
from flipscale.data.quarantine import BadRecord
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream, default_workers
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Index, expand_shards, is_current, load_index, shard_name
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Storage
from flipscale.data.text.tokenizer import Tokenizer, load_tokenizer
from flipscale.distributed.world import World
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.models.presets import preset
from flipscale.runs.directory import RunDirectory
from flipscale.sharding.limits import check_sharding

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The training set of a run, at the same place in its order on every process."""

    index: Index
    tokenizer: Tokenizer
    stream: Stream
    sources: list[int] | None  # shards of each source of a mixture

    def identity(self) -> dict[str, object]:
        """What must stay the same for the life of a run; see run_directory.check_identity."""
        identity: dict[str, object] = {
            "fingerprint": self.index.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "samples": self.index.samples,
            "shards": [[shard_name(shard.path), shard.samples] for shard in self.index.shards],
        }
        if self.sources is not None:
            divided = json.dumps([self.index.fingerprint, self.sources]).encode()
            identity |= {"fingerprint": hashlib.sha256(divided).hexdigest(), "sources": self.sources}
        return identity

    def cut_shards(self) -> list[BadRecord]:
        """Shards that lost samples at their end, as quarantine records."""
        numbers = {shard.path: number for number, shard in enumerate(self.index.shards)}
        return [
            BadRecord(
                numbers[damage.path], damage.samples, damage.path, "", f"the shard is cut: {damage.reason}"
            )
            for damage in self.index.damaged
        ]


def check_job(job: Job, world_size: int) -> Budget:
    """Return the job's budget. Raises UserError for what is wrong before anything is read or started."""
    phase_specs(
        preset(job.model.preset, image_size=job.model.image_size, patch_size=job.model.patch_size), job
    )
    check_world_size(world_size, job.data.lanes)
    check_sharding(job.sharding, world_size, "cuda" if torch.cuda.is_available() else "cpu")
    return Budget.of(job.phases, job.data.lanes)


def slow_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is far slower than fp32 there: x86 CPUs without AVX-512 compute it piece by piece."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def open_data(job: Job, run: RunDirectory, budget: Budget, world: World) -> TrainingData:
    """Open (or build) the index, check the shards, and lay out the stream for this process."""
    storage = Storage(job.data.allow_pipe)
    index = _open_index(job, run, world, storage)
    tokenizer = job_tokenizer(job)
    sources = shards_by_source(job.data)
    order = Mixture(index.counts, job.data.lanes, job.data.window, job.seed, job_sources(job.data, sources))
    spec = model_spec(job, tokenizer)
    settings = ReaderSettings(
        spec.vision.image_size, job.data.augmentation, job.data.max_image_pixels, job.data.captions
    )
    workers = default_workers(world.local_size) if job.data.workers is None else job.data.workers
    cache = BlockCache(Path(job.data.cache.directory), job.data.cache.size) if job.data.cache else None
    reader = SampleReader(ShardSource(index, storage, cache), order, tokenizer, settings)
    sizes = [shape.vision.image_size for shape in phase_specs(spec, job)]
    stream = Stream(
        reader, budget, LaneShare(job.data.lanes, world.rank, world.size), workers, world.device, sizes
    )
    return TrainingData(index, tokenizer, stream, sources)


def job_tokenizer(job: Job) -> Tokenizer:
    source = job.data.tokenizer
    return load_tokenizer(source.kind, source.vocab, source.context_length)


def _open_index(job: Job, run: RunDirectory, world: World, storage: Storage) -> Index:
    """The leading process builds and checks; then all load the same files."""
    directory = Path(job.data.index) if job.data.index is not None else run.path / "index"

    def ready() -> None:
        paths = expand_shards(job.data.train)
        if job.data.index is None and not _indexes(directory, paths):
            _log.info("indexing %s (give data.index to reuse an index)", job.data.train)
            cores = len(os.sched_getaffinity(0))
            build_index(job.data.train, directory, workers=cores, storage=storage)
        index = load_index(directory)
        index.check_paths(paths, job.data.train)
        index.verify(storage)

    world.lead(ready)
    return load_index(directory)


def _indexes(directory: Path, paths: list[str]) -> bool:
    """Whether the run has built its index already, and of the shards that lie at these paths."""
    # Of an index of another version, the run makes one of the same samples again.
    if not is_current(directory):
        return False
    return [shard.path for shard in load_index(directory).shards] == paths

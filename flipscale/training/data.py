"""The training data of a job: from its `data` block to the stream of batches of one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.quarantine import read_quarantine
from flipscale.data.samples.of_job import open_reader
from flipscale.data.samples.stream import LaneShare, Stream, default_workers
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.runs.directory import RunDirectory
from flipscale.runs.identity import DataIdentity
from flipscale.training.shards import TrainingShards, open_shards


@dataclass(frozen=True)
class TrainingData:
    """The training set of a run, at the same place in its order on every process.

    Attributes:
        shards: The indexed shards.
        tokenizer: The tokenizer of the captions.
        stream: The batches of this process.
    """

    shards: TrainingShards
    tokenizer: Tokenizer
    stream: Stream

    def identity(self) -> DataIdentity:
        """Return what must stay the same for the life of a run; see `flipscale.runs`."""
        return self.shards.identity(self.tokenizer.fingerprint)


def open_data(job: Job, run: Path, budget: Budget, world: World) -> TrainingData:
    """Open the training data of a job for this process; all processes call it together.

    Args:
        job: The job.
        run: The run directory, which holds the index unless `data.index` names another one.
        budget: The budget of the job.
        world: The processes of the run.

    Raises:
        UserError: If the shards cannot be read or differ from their index, or if the tokenizer cannot be
            loaded or does not fit the model.
    """
    data = job.data
    shards = open_shards(data, run, world)
    tokenizer = load_job_tokenizer(data.tokenizer)
    spec = model_spec(job, tokenizer)

    size = spec.vision.image_size
    reader = open_reader(data, job.seed, shards.source, shards.counts, tokenizer, size, shards.turns)
    reader.leave_out(read_quarantine(RunDirectory(run).quarantine))
    workers = default_workers(world.cores) if data.workers is None else data.workers
    sizes = [shape.vision.image_size for shape in phase_specs(spec, job)]
    share = LaneShare(data.lanes, world.rank, world.size)
    stream = Stream(reader, budget, share, workers, world.device, sizes)
    return TrainingData(shards, tokenizer, stream)

"""The blocks of a job that say how it trains: phases, optimizer, sharding, checkpoints, logging, cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from flipscale.config.units import Cadence
from flipscale.config.values import (
    ClusterSize,
    Count,
    Default,
    Duration,
    Every,
    ImageSide,
    Kind,
    Name,
    PositiveCount,
    PositiveFloat,
    Share,
    Strict,
)

_CHECKPOINTING = re.compile(r"^(none|full|selective|every [1-9][0-9]*)$")


def _checkpointing(mode: object) -> object:
    if isinstance(mode, str) and not _CHECKPOINTING.match(mode):
        raise ValueError("give none, full, selective, or `every k` blocks with k from 1 on, such as every 2")
    return mode


CheckpointingMode = Annotated[
    str,
    BeforeValidator(_checkpointing),
    Field(pattern=_CHECKPOINTING.pattern),
    Kind("`none`, `full`, `selective`, `every k`"),
]
Strategy = Literal["ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3", "fairscale_oss", "fairscale_fsdp"]


class Phase(Strict):
    """A part of the budget that is trained in one way."""

    name: Name
    """The name of the phase; no two phases share one."""
    samples: PositiveCount
    """The budget of this phase in samples seen; it is spent exactly."""
    mask_ratio: Share
    """Share of each image's patches that the encoder never sees."""
    batch_size: PositiveCount
    """The global batch, over all processes."""
    base_lr: PositiveFloat
    """Peak learning rate per 256 samples of batch: peak = base_lr x batch_size / 256 (paper, A.1)."""
    warmup: Count = 0
    """Samples over which the rate rises linearly to its peak; after that, `schedule` says how it falls."""
    schedule: Literal["cosine", "constant_cooldown"] = "cosine"
    """How the rate falls to 0: `cosine` over the rest of the phase, or `constant_cooldown`, which holds the
    peak and falls linearly over the last `cooldown` samples, as OpenCLIP's `const-cooldown` does."""
    cooldown: PositiveCount | None = None
    """constant_cooldown only, and required there: samples at the end of the phase over which the rate
    falls."""
    text_mask_ratio: Share = 0.0
    """Share of each caption's token slots that the text encoder never sees (paper, table 1c)."""
    text_mask: Literal["prioritised", "random"] = "prioritised"
    """Which slots are hidden: `prioritised` hides padding first, `random` draws from all slots alike."""
    fresh_optimizer: bool = False
    """Start this phase with empty optimizer moments, as the paper's unmasked tuning does."""
    image_size: Annotated[ImageSide | None, Default("the model's")] = None
    """Side in pixels of the images of this phase."""
    patch_size: Annotated[ImageSide | None, Default("the model's")] = None
    """Side in pixels of a patch in this phase. If it changes between phases, the patch kernels are
    resampled."""
    micro_batch: Annotated[PositiveCount | None, Default("`sharding.micro_batch`")] = None
    """Samples that a process works on at a time in this phase, such as one without a mask after masked ones;
    the smaller one counts if `sharding` has one, too."""

    @model_validator(mode="after")
    def _check_warmup(self) -> Phase:
        if self.warmup >= self.samples:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than samples ({self.samples})")
        return self

    @model_validator(mode="after")
    def _check_cooldown(self) -> Phase:
        if self.schedule == "cosine":
            if self.cooldown is not None:
                raise ValueError(
                    "cooldown belongs to schedule constant_cooldown, not to cosine; leave it out or set the "
                    "schedule"
                )
            return self

        if self.cooldown is None:
            raise ValueError(
                "constant_cooldown needs cooldown, the samples at the end of the phase over which the rate "
                "falls"
            )
        if self.warmup + self.cooldown > self.samples:
            raise ValueError(
                f"warmup ({self.warmup}) and cooldown ({self.cooldown}) must fit into samples "
                f"({self.samples}); shorten one of them"
            )
        return self


class Optimizer(Strict):
    """The optimizer, AdamW with the paper's settings (A.1)."""

    name: Name = "adamw"
    """The name of the optimizer: `adamw`."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's term against division by zero."""
    weight_decay: Annotated[float, Field(ge=0.0), Kind("number >= 0")] = 0.2
    """AdamW's weight decay. It spares biases, norm scales and position embeddings, as the released recipe
    does."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest global gradient norm; the paper clips none."""


class Sharding(Strict):
    """How model, optimizer and activations are spread over processes.

    All settings but the precision give the same training.
    """

    strategy: Strategy = "ddp"
    """The library and the parts that it spreads over processes; see docs/sharding.md."""
    precision: Literal["bf16", "fp32", "fp64"] = "fp32"
    """The precision of matrix products; with `bf16`, weights and moments stay fp32."""
    shard_size: PositiveCount | None = None
    """hsdp only, and required there: processes that share one copy of the model, such as those of a node."""
    reshard_after_forward: bool = True
    """fsdp and hsdp: free a block's gathered weights after its forward. `false` trades memory for speed."""
    offload_optimizer: bool = False
    """zero1 to zero3: keep the optimizer's state in host memory."""
    activation_checkpointing: CheckpointingMode = "none"
    """Recompute activations in the backward: none, full, selective (all but attention and matrix products),
    or those of `every k` blocks."""
    compile: bool = False
    """Compile each transformer block with torch.compile."""
    micro_batch: Annotated[PositiveCount | None, Default("the whole share")] = None
    """Samples that a process works on at a time. With it a global batch of any size fits (GradCache)."""

    def micro_batch_in(self, phase: Phase) -> int | None:
        """Return the samples that a process works on at a time in a phase; None for its whole share."""
        given = [size for size in (self.micro_batch, phase.micro_batch) if size is not None]
        return min(given, default=None)

    @model_validator(mode="after")
    def _check_strategy_options(self) -> Sharding:
        if self.strategy == "hsdp" and self.shard_size is None:
            raise ValueError(
                "hsdp needs shard_size, the processes that share one copy of the model, "
                "such as those of a node"
            )
        if self.strategy != "hsdp" and self.shard_size is not None:
            raise ValueError(f"shard_size belongs to strategy hsdp, not to {self.strategy}; leave it out")
        if self.offload_optimizer and not self.strategy.startswith("zero"):
            raise ValueError(
                f"offload_optimizer belongs to zero1, zero2 and zero3, not to {self.strategy}; leave it out"
            )
        return self


class Checkpoints(Strict):
    """When checkpoints are saved, and which are kept; the end of each phase is always saved and kept."""

    every: tuple[Every, ...] = (Cadence(1800, "seconds"),)
    """Save when any of these has passed: samples seen, steps, or wall-clock time."""
    keep_last: Annotated[int, Field(ge=2), Kind("count >= 2")] = 3
    """Newest checkpoints kept; at least 2, so that a damaged one is never the only one."""
    keep_every: PositiveCount | None = None
    """Also keep permanently the first checkpoint at or after each multiple of this many samples."""

    @model_validator(mode="before")
    @classmethod
    def _expand_single_cadence(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value

        block = cast("dict[str, Any]", value)
        every = block.get("every")
        return {**block, "every": [every]} if isinstance(every, (str, int)) else block


class Logging(Strict):
    """What is written about training while it runs."""

    every: Every = Cadence(10, "steps")
    """How often a line of metrics is written, in samples seen or steps."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard."""

    @model_validator(mode="after")
    def _refuse_clock(self) -> Logging:
        if self.every.unit == "seconds":
            raise ValueError("every counts samples or steps, not time, so that metrics are reproducible")
        return self


class Hang(Strict):
    """When a step that does not end is given up.

    The processes then write their stacks to the logs, and the job starts again. See docs/run_directory.md.
    """

    factor: Annotated[float, Field(ge=2.0), Kind("number >= 2")] = 20.0
    """A step may take this many times the longest of the latest 20 steps."""
    least: Duration = 300
    """The limit of a step is never below this."""
    start: Duration = 3600
    """The limit of start-up with its first step, and of a save."""


class Cluster(Strict):
    """What the job asks of a cluster."""

    nodes: ClusterSize = 1
    """Nodes of the job."""
    gpus_per_node: ClusterSize = 8
    """GPUs per node; one process runs on each."""
    timeout: Duration = 24 * 3600
    """Time limit of one start. A run that needs more is trained in several segments."""
    check_node: bool = False
    """Measure every node before the first step (`flipscale doctor --node`), and train on no slow one."""

    @property
    def gpus(self) -> int:
        """The GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

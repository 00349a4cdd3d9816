"""The job file's schema (pydantic, strict): what can be said, in which units, with which defaults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from flipscale.config.units import Cadence, parse_bytes, parse_cadence, parse_count, parse_duration

Count = Annotated[int, BeforeValidator(parse_count)]
PositiveCount = Annotated[int, Field(gt=0), BeforeValidator(parse_count)]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(parse_bytes)]
Duration = Annotated[int, Field(gt=0), BeforeValidator(parse_duration), PlainSerializer(lambda s: f"{s}s")]
Every = Annotated[Cadence, BeforeValidator(parse_cadence), PlainSerializer(str)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _above_zero(weight: float) -> float:
    if weight <= 0.0:
        raise ValueError("a weight must be above zero; leave out what shall not be read")
    return weight


_CHECKPOINTING = re.compile(r"^(none|full|selective|every [1-9][0-9]*)$")


def _checkpointing(mode: object) -> object:
    if isinstance(mode, str) and not _CHECKPOINTING.match(mode):
        raise ValueError("give none, full, selective, or `every k` blocks with k from 1 on, such as every 2")
    return mode


Weight = Annotated[float, AfterValidator(_above_zero)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # never `..`: it becomes a directory


class Strict(BaseModel):
    """Frozen, no unknown keys, a field's documentation is the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Model(Strict):
    preset: str
    """Name of a preset: vit_b32, vit_b16, vit_l16, vit_l14, vit_h14, a clip_* baseline, or a tiny one."""
    image_size: PositiveCount | None = None
    """Side of the square input in pixels; the preset's by default."""
    patch_size: PositiveCount | None = None
    """Side of a patch in pixels; the preset's by default."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """Start from these weights in place of initial ones: an OpenCLIP directory, a run or a checkpoint. They
    are read when the run begins and never again."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_is_a_preset(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value


class TokenizerSource(Strict):
    kind: Literal["wordpiece", "clip_bpe"] = "wordpiece"
    vocab: str | None = None
    """WordPiece only: a vocab.txt, a directory, or a hub name such as bert-base-uncased."""
    context_length: PositiveCount | None = None
    """Tokens a caption; 32 for wordpiece (paper, section 3.1) and 77 for clip_bpe by default."""

    @model_validator(mode="after")
    def _wordpiece_needs_a_vocabulary(self) -> TokenizerSource:
        if self.kind == "wordpiece" and self.vocab is None:
            raise ValueError(
                "tokenizer.vocab is missing: name a vocab.txt, a directory or a hub name, "
                "or learn one with `flipscale data vocab`"
            )
        return self


class Augmentation(Strict):
    crop_area: tuple[Fraction, Fraction] = (0.5, 1.0)
    """Smallest and largest share of the image's area that a random crop takes (paper, A.1)."""
    flip: bool = True
    """Flip half of the images left to right. Turn it off where captions name left and right."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    @model_validator(mode="after")
    def _area_is_a_range(self) -> Augmentation:
        low, high = self.crop_area
        if not 0.0 < low <= high:
            raise ValueError(f"[{low}, {high}] is no range of shares; give 0 < smallest <= largest <= 1")
        return self


class Cache(Strict):
    directory: str
    """A directory on a local disk; processes and nodes may share it."""
    size: Bytes
    """What the cache may hold, such as 500GB."""


class Data(Strict):
    train: str
    """Shards by brace expansion: /data/laion/{000000..041454}.tar, or s3://, gs://, https:// addresses;
    `::` joins several patterns."""
    weights: tuple[Weight, ...] | None = None
    """One number for each pattern that `::` joins: its share of the samples seen. By default the patterns are
    one set, of which every sample comes equally often."""
    allow_pipe: tuple[str, ...] = ()
    """Names of the commands that shards of the form `pipe:COMMAND ARGUMENT...` may run."""
    cache: Cache | None = None
    """Keep what was read of the shards on a local disk."""
    captions: Annotated[dict[str, Weight], Field(min_length=1)] = {"txt": 1.0}
    """Where captions come from, with the probability of each: an extension such as txt or alt.txt, or
    json.FIELD for a field of the json. A sample that lacks the one drawn takes the next in this order."""
    max_bad_fraction: Fraction | None = None
    """Stop where a larger share of the samples cannot be used; judged from the first 1,000 samples on."""
    tokenizer: TokenizerSource
    lanes: PositiveCount = 64
    """Parallel sample sequences that every global batch is dealt from; fixed for the life of a run.
    It must divide every batch size, and the number of processes must divide it."""
    window: PositiveCount = 2048
    """Consecutive samples of a lane that are shuffled together."""
    index: str | None = None
    """Directory made by `flipscale data index`; without it the index is built in the run directory."""
    workers: Count | None = None
    """Loader processes beside each training process; by default its share of this machine's cores."""
    augmentation: Augmentation = Augmentation()
    max_image_pixels: PositiveCount = 100_000_000
    """Larger images are quarantined before they are decoded."""

    @model_validator(mode="after")
    def _sources_fit(self) -> Data:
        patterns = self.train.split("::")
        if self.weights is not None and len(self.weights) != len(patterns):
            raise ValueError(
                f"weights has {len(self.weights)} numbers, but train joins {len(patterns)} patterns; "
                "give one weight for each that `::` joins"
            )
        piped = [pattern for pattern in patterns if pattern.startswith("pipe:")]
        if piped and self.cache is None:
            raise ValueError(
                f"train has the command {piped[0]!r}, whose output cannot be read at any place; "
                "set cache: {directory, size} to hold it"
            )
        return self


class Phase(Strict):
    name: Name
    samples: PositiveCount
    """Budget of this phase in samples seen; spent exactly."""
    mask_ratio: Share
    """Share of each image's patches that the encoder never sees."""
    batch_size: PositiveCount
    """Global batch, over all processes."""
    base_lr: Annotated[float, Field(gt=0.0)]
    """Peak learning rate per 256 samples of batch: peak = base_lr x batch_size / 256 (paper, A.1)."""
    warmup: Count = 0
    """Samples over which the rate rises linearly to its peak; then a cosine falls to 0."""
    text_mask_ratio: Share = 0.0
    """Share of each caption's token slots that the text encoder never sees (paper, table 1c)."""
    text_mask: Literal["prioritised", "random"] = "prioritised"
    """Which of them: prioritised hides padding first; random takes all slots alike."""
    fresh_optimizer: bool = False
    """Start this phase with empty optimizer moments, as the paper's unmasked tuning does."""
    image_size: PositiveCount | None = None
    """Side in pixels of the images of this phase; the model's by default."""
    patch_size: PositiveCount | None = None
    """Side in pixels of a patch in this phase; the model's by default. Where it changes between phases, the
    patch kernels are resampled."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Phase:
        if self.warmup >= self.samples:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than samples ({self.samples})")
        return self


class Optimizer(Strict):
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.2
    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest global gradient norm; none in the paper."""


class Sharding(Strict):
    strategy: Literal["ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3", "fairscale_oss", "fairscale_fsdp"] = (
        "ddp"
    )
    """How model and optimizer are spread over processes; all give the same training."""
    precision: Literal["bf16", "fp32", "fp64"] = "fp32"
    shard_size: PositiveCount | None = None
    """hsdp only: processes that share one copy of the model, such as those of a node."""
    reshard_after_forward: bool = True
    """fsdp and hsdp: free a block's gathered weights after its forward; false trades memory for speed."""
    offload_optimizer: bool = False
    """zero1 to zero3: keep the optimizer's state in host memory."""
    activation_checkpointing: Annotated[
        str, BeforeValidator(_checkpointing), Field(pattern=_CHECKPOINTING.pattern)
    ] = "none"
    """Recompute activations in the backward: none, full, selective (all but attention and matrix products),
    or `every k` blocks."""
    compile: bool = False
    """torch.compile each transformer block."""
    micro_batch: PositiveCount | None = None
    """Samples that a process works on at a time; with it a global batch of any size fits (GradCache)."""

    @model_validator(mode="after")
    def _hsdp_has_a_shard_size(self) -> Sharding:
        if self.strategy == "hsdp" and self.shard_size is None:
            raise ValueError(
                "hsdp needs shard_size, the processes that share one copy of the model: those of a node, say"
            )
        if self.strategy != "hsdp" and self.shard_size is not None:
            raise ValueError(f"shard_size belongs to strategy hsdp, not to {self.strategy}; leave it out")
        if self.offload_optimizer and not self.strategy.startswith("zero"):
            raise ValueError(f"offload_optimizer belongs to zero1, zero2 and zero3, not to {self.strategy}")
        return self


class Reconstruction(Strict):
    """MAE's loss on the hidden patches, by a decoder that is dropped after training (paper, table 1f)."""

    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Of this loss beside the contrastive one; the paper just adds the two."""
    width: PositiveCount = 256
    """Of the decoder. The paper gives no size; this is a small one, with 32 channels a head as in MAE."""
    layers: PositiveCount = 4
    """Blocks of the decoder."""
    heads: PositiveCount = 8
    """Attention heads of the decoder; they must divide its width."""

    @model_validator(mode="after")
    def _width_fits(self) -> Reconstruction:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} is no multiple of 4, for its positions, and of the {self.heads} heads; "
                "change one of them"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, layers and heads, as `preset` takes them."""
        return self.width, self.layers, self.heads


class Loss(Strict):
    kind: Literal["contrastive", "sigmoid"] = "contrastive"
    """contrastive: InfoNCE over the global batch (paper, section 3); sigmoid: SigLIP's loss over the same
    pairs, with a learned bias in the model."""
    tile: PositiveCount = 512
    """Rows of the logit matrix worked on at a time; memory grows with batch x tile."""
    reconstruction: Reconstruction | None = None
    """Also reconstruct the hidden patches, in the phases that hide some; `{}` takes the defaults."""

    @property
    def decoder(self) -> tuple[int, int, int] | None:
        """The decoder's shape, as `preset` takes it."""
        return None if self.reconstruction is None else self.reconstruction.shape


class Checkpoints(Strict):
    every: tuple[Every, ...] = (Cadence(1800, "seconds"),)
    """Save when any of these has passed: samples seen, steps, or wall-clock time."""
    keep_last: Annotated[int, Field(ge=2)] = 3
    """Newest checkpoints kept; at least 2, so that a damaged one never is the only one."""
    keep_every: PositiveCount | None = None
    """Also keep for good the first checkpoint at or after each multiple of this many samples."""

    @model_validator(mode="before")
    @classmethod
    def _one_cadence_is_a_list(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        every = given.get("every")
        return {**given, "every": [every]} if isinstance(every, (str, int)) else given


class Logging(Strict):
    every: Every = Cadence(10, "steps")
    """How often a line of metrics is written: samples seen or steps."""
    tensorboard: bool = True

    @model_validator(mode="after")
    def _not_by_the_clock(self) -> Logging:
        if self.every.unit == "seconds":
            raise ValueError("every counts samples or steps, not time, so that metrics are reproducible")
        return self


class Hang(Strict):
    """When a step is given up: the processes write their stacks to the logs, and the job starts again."""

    factor: Annotated[float, Field(ge=2.0)] = 20.0
    """A step may take this many times the longest of the latest 20."""
    least: Duration = 300
    """But never less than this."""
    start: Duration = 3600
    """The limit of start-up with its first step, and of a save."""


ZeroShotMetric = Literal["top1", "top5", "mean_per_class", "top1_top5_mean", "roc_auc", "map_11_point"]


class ZeroShot(Strict):
    data: str
    """webdataset shards with .cls labels (brace expansion), a directory of CLIP_benchmark's converter, or a
    folder with one sub-folder a class."""
    classnames: str
    """A file with one class name a line; `imagenet`; `folders` for the names of the class folders; `own` for
    the file in CLIP_benchmark's directory; or the folder `mappings` of ObjectNet."""
    templates: str = "openai7"
    """A file with one prompt template a line, `openai7`, `openai80`, `name` for the bare class name, or `own`
    for the file in CLIP_benchmark's directory."""
    metric: ZeroShotMetric = "top1"
    """The set's figure. map_11_point takes any number of labels an image, the others one."""
    subset: str | None = None
    """The class names that take part: imagenet_a, imagenet_r, or a file with one class number a line."""


class Evaluation(Strict):
    every: Every | None = None
    """Also evaluate while training, after so many samples or steps and at the end of every phase; without
    it only `flipscale eval` evaluates."""
    zero_shot: dict[str, ZeroShot] = {}
    """Classification sets by name."""
    retrieval: dict[str, str] = {}
    """Image-caption sets by name: webdataset shards, a directory of CLIP_benchmark's converter, or COCO's or
    Karpathy's file of captions (JSON)."""
    root: str | None = None
    """Where the sets' data lie that have no absolute path; the working directory by default."""

    @model_validator(mode="after")
    def _something_at_reproducible_places(self) -> Evaluation:
        if self.every is not None and self.every.unit == "seconds":
            raise ValueError("every counts samples or steps, not time, so that evaluations are reproducible")
        if self.every is not None and not (self.zero_shot or self.retrieval):
            raise ValueError("every needs a set to evaluate: name one under zero_shot or retrieval")
        return self


class Cluster(Strict):
    nodes: PositiveCount = 1
    gpus_per_node: PositiveCount = 8
    timeout: Duration = 24 * 3600
    check_node: bool = False
    """Measure every node before the first step (`flipscale doctor --node`); train on no slow one."""


class Job(Strict):
    name: Name
    output: str | None = None
    """The run directory; runs/NAME by default."""
    model: Model
    seed: Count = 0
    """Seeds the initial weights, the sample order, the augmentations and the masks."""
    data: Data
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    sharding: Sharding = Sharding()
    checkpoint: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    evaluation: Evaluation = Evaluation()
    hang: Hang = Hang()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _phase_names_differ(self) -> Job:
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are called {name!r}; give each its own name")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_reconstruct(self) -> Job:
        if self.loss.reconstruction is not None and not any(phase.mask_ratio for phase in self.phases):
            raise ValueError(
                "loss.reconstruction needs hidden patches, but every phase has mask_ratio 0; "
                "raise it in one of them or leave loss.reconstruction out"
            )
        return self

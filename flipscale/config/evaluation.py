"""The `evaluation` block of a job: on which sets it is evaluated, and when."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flipscale.config.values import Default, Every, Line, Strict

ZeroShotMetric = Literal["top1", "top5", "mean_per_class", "top1_top5_mean", "roc_auc", "map_11_point"]


class ZeroShot(Strict):
    """A classification set."""

    data: Line
    """webdataset shards with .cls labels (brace expansion), a directory of CLIP_benchmark's converter, or a
    folder with one sub-folder per class."""
    classnames: Line
    """A file with one class name per line, or `imagenet`. `folders` takes the names of the class folders, and
    `own` the file in CLIP_benchmark's directory. ObjectNet takes the path of its folder `mappings`."""
    templates: Line = "openai7"
    """A file with one prompt template per line, `openai7`, `openai80`, `name` for the bare class name, or
    `own` for the file in CLIP_benchmark's directory."""
    metric: ZeroShotMetric = "top1"
    """The metric that stands for the set. `map_11_point` takes any number of labels per image, the others
    one."""
    subset: Line | None = None
    """The class names that take part: `imagenet_a`, `imagenet_r`, or a file with one class number per
    line."""


class Evaluation(Strict):
    """The sets that a model is evaluated on."""

    every: Annotated[Every | None, Default("only `flipscale eval`")] = None
    """Also evaluate while training: after so many samples or steps, and at the end of every phase. Without
    it, only `flipscale eval` evaluates. See docs/evaluation_and_export.md."""
    zero_shot: dict[Line, ZeroShot] = Field(default_factory=dict)
    """Classification sets by name; see docs/evaluation_and_export.md#sets."""
    retrieval: dict[Line, Line] = Field(default_factory=dict)
    """Image-caption sets by name: webdataset shards, a directory of CLIP_benchmark's converter, or COCO's,
    Karpathy's or Flickr30k's file of captions."""
    root: Annotated[Line | None, Default("the working directory")] = None
    """The directory to which relative paths of the sets' data refer."""

    @model_validator(mode="after")
    def _check_every(self) -> Evaluation:
        if self.every is not None and self.every.unit == "seconds":
            raise ValueError("every counts samples or steps, not time, so that evaluations are reproducible")
        if self.every is not None and not (self.zero_shot or self.retrieval):
            raise ValueError("every needs a set to evaluate: name one under zero_shot or retrieval")
        return self

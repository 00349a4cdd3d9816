"""The options that name evaluation sets, for `flipscale eval` and `flipscale compare`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.config import Evaluation, Job, ZeroShotMetric

Metric = Annotated[
    str, typer.Option(help="top1, top5, mean_per_class, top1_top5_mean, roc_auc or map_11_point.")
]


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """The sets that a command line names, in place of those of a job."""

    zero_shot: Annotated[
        str | None,
        typer.Option(help="Shards with .cls labels, or a folder of class folders.", show_default=False),
    ] = None
    classnames: Annotated[
        str, typer.Option(help="File with one class name per line, `imagenet`, `folders` or `own`.")
    ] = "folders"
    templates: Annotated[
        str, typer.Option(help="File with one template per line, openai7, openai80, `name` or `own`.")
    ] = "openai7"
    metric: Metric = "top1"
    subset: Annotated[
        str | None, typer.Option(help="imagenet_a, imagenet_r, or a file of numbers.", show_default=False)
    ] = None
    retrieval: Annotated[
        str | None, typer.Option(help="Shards of image-caption pairs for retrieval.", show_default=False)
    ] = None
    sets: Annotated[
        Path | None, typer.Option(help="File with sets, as a job's `evaluation`.", show_default=False)
    ] = None
    root: Annotated[
        str | None, typer.Option(help="Where the data of the sets is stored.", show_default=False)
    ] = None


_OF_ZERO_SHOT = ("classnames", "templates", "metric", "subset")


def chosen_sets(options: SetOptions) -> Evaluation | None:
    """Return the sets that the options name, or None if they name none.

    Raises:
        UserError: If the options exclude each other, or the file of --sets is wrong.
    """
    from flipscale.config import Evaluation, ZeroShot, ZeroShotMetric, load_evaluation

    if options.zero_shot is None:
        _refuse_options_of_zero_shot(options)
    if options.sets is not None:
        if options.zero_shot is not None or options.retrieval is not None:
            raise UserError("--sets comes without --zero-shot and --retrieval; put these sets into the file")
        return load_evaluation(options.sets)
    if options.zero_shot is None and options.retrieval is None:
        return None

    metrics = get_args(ZeroShotMetric)
    if options.metric not in metrics:
        raise UserError(f"--metric {options.metric} does not exist; choose one of {', '.join(metrics)}")

    zero_shot = ZeroShot(
        data=options.zero_shot or "",
        classnames=options.classnames,
        templates=options.templates,
        metric=cast("ZeroShotMetric", options.metric),
        subset=options.subset,
    )
    return Evaluation(
        zero_shot={"zero_shot": zero_shot} if options.zero_shot else {},
        retrieval={"retrieval": options.retrieval} if options.retrieval else {},
    )


def sets_of_job(job: Job | None) -> Evaluation:
    """Return the evaluation sets of a job; no sets if the job is not known."""
    from flipscale.config import Evaluation

    return Evaluation() if job is None else job.evaluation


def with_root(sets: Evaluation, options: SetOptions) -> Evaluation:
    """Return the sets with the directory of --root in place of their own, if it is given."""
    return sets if options.root is None else sets.model_copy(update={"root": options.root})


def _refuse_options_of_zero_shot(options: SetOptions) -> None:
    """Raise UserError if an option that describes the set of --zero-shot differs from its default."""
    defaults = {field.name: field.default for field in fields(SetOptions)}
    for name in _OF_ZERO_SHOT:
        value = getattr(options, name)
        if value != defaults[name]:
            raise UserError(
                f"--{name} {value} belongs to the set that --zero-shot names; give that too, or set `{name}` "
                "in the job's evaluation block or the file of --sets"
            )

"""What is done with trained models: each command thin; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import AsJson, Run

evaluation_app = typer.Typer()

Trained = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT", help="Run, checkpoint or OpenCLIP directory.", show_default=False),
]
ZeroShot = Annotated[
    str | None,
    typer.Option(help="Shards with .cls labels, or a folder of class folders.", show_default=False),
]
Classnames = Annotated[
    str, typer.Option(help="File with a class name a line, `imagenet`, `folders` or `own`.")
]
Templates = Annotated[
    str, typer.Option(help="File with a template a line, openai7, openai80, `name` or `own`.")
]
Metric = Annotated[
    str, typer.Option(help="top1, top5, mean_per_class, top1_top5_mean, roc_auc or map_11_point.")
]
Subset = Annotated[
    str | None, typer.Option(help="imagenet_a, imagenet_r, or a file of numbers.", show_default=False)
]
Retrieval = Annotated[
    str | None, typer.Option(help="Shards of image-caption pairs for retrieval.", show_default=False)
]
Sets = Annotated[
    Path | None, typer.Option(help="File with sets, as a job's `evaluation`.", show_default=False)
]
Root = Annotated[str | None, typer.Option(help="Where the data of the sets lie.", show_default=False)]
Results = Annotated[Path | None, typer.Option(help="Also write the results here (JSON).", show_default=False)]
TrainSet = Annotated[
    str, typer.Option(help="Shards with .cls labels, or a folder of class folders.", show_default=False)
]
TestSet = Annotated[str, typer.Option(help="Likewise, with the same classes.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="The recipe's by default.", min=1, show_default=False)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images an update, of all processes; the recipe's by default.", min=2, show_default=False
    ),
]
BaseLr = Annotated[
    float | None,
    typer.Option(help="For 256 images, growing with the batch; the recipe's by default.", show_default=False),
]
MicroBatch = Annotated[int, typer.Option(help="Images a process holds on its device at once.", min=1)]
EncodedBatch = Annotated[int, typer.Option(help="Images that a process encodes at once.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the random choices.", min=0)]


@evaluation_app.command("eval")
def evaluate(
    checkpoint: Trained,
    zero_shot: ZeroShot = None,
    classnames: Classnames = "folders",
    templates: Templates = "openai7",
    metric: Metric = "top1",
    subset: Subset = None,
    retrieval: Retrieval = None,
    sets: Sets = None,
    root: Root = None,
    mask_ratio: Annotated[
        float | None, typer.Option(help="Hide this share of each image's patches.", show_default=False)
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average the views that together show all patches.")
    ] = False,
    batch_size: EncodedBatch = 64,
    out: Results = None,
    as_json: AsJson = False,
) -> None:
    """Zero-shot classification and retrieval, on the sets given here or on those of the run's job."""
    from flipscale.cli.evaluation import evaluate_checkpoint, given_sets

    chosen = given_sets(sets, zero_shot, classnames, templates, metric, subset, retrieval)
    evaluate_checkpoint(checkpoint, chosen, root, mask_ratio, ensemble, batch_size, out, as_json)


@evaluation_app.command()
def probe(
    checkpoint: Trained,
    train: TrainSet,
    test: TestSet,
    method: Annotated[str, typer.Option(help="lbfgs, as CLIP, or lars, as the FLIP paper.")] = "lbfgs",
    features: Annotated[
        str, typer.Option(help="pooled: before the projection; embedding: what zero-shot compares.")
    ] = "pooled",
    c: Annotated[
        str | None,
        typer.Option(
            help="lbfgs: inverse strength of the L2 penalty, 0.316 by default, or `sweep`.",
            show_default=False,
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    base_lr: BaseLr = None,
    micro_batch: MicroBatch = 64,
    seed: Seed = 0,
    out: Results = None,
    as_json: AsJson = False,
) -> None:
    """Train a linear classifier on frozen image features, and score it."""
    from flipscale.cli.probe import probe_checkpoint

    probe_checkpoint(
        checkpoint,
        train,
        test,
        method,
        features,
        c,
        epochs,
        batch_size,
        base_lr,
        micro_batch,
        seed,
        out,
        as_json,
    )


@evaluation_app.command()
def finetune(
    checkpoint: Trained,
    train: TrainSet,
    test: TestSet,
    out: Annotated[
        Path,
        typer.Option(help="Directory for weights and results; the same command goes on.", show_default=False),
    ],
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    base_lr: BaseLr = None,
    drop_path: Annotated[
        float | None, typer.Option(help="Of the last block; the recipe's by default.", show_default=False)
    ] = None,
    micro_batch: MicroBatch = 64,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train the image tower and a linear classifier on it together, and score them."""
    from flipscale.cli.finetune import finetune_checkpoint

    finetune_checkpoint(
        checkpoint, train, test, out, epochs, batch_size, base_lr, drop_path, micro_batch, seed, as_json
    )


@evaluation_app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run or checkpoint directory.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only verify the export that lies in OUT.")
    ] = False,
) -> None:
    """Write an OpenCLIP directory, and prove that stock OpenCLIP loads it and gives the same features."""
    from flipscale.cli.interchange import export_run

    export_run(checkpoint, out, only_verify=verify)


@evaluation_app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="OpenCLIP directory, or a builtin name: ViT-B-32.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of a builtin name: .safetensors, .bin or .pt.", show_default=False),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="OpenCLIP's tag of weights that it has downloaded before.", show_default=False),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Initial weights, for trials.")] = False,
) -> None:
    """Take over a model of OpenCLIP, and prove that it computes here what it computes there."""
    from flipscale.cli.interchange import import_model

    import_model(source, out, weights=weights, pretrained=pretrained, random=random)


@evaluation_app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write; reports/NAME by default.", show_default=False),
    ] = None,
) -> None:
    """Write a page about a run, as HTML that works offline, Markdown and JSON; the run is only read."""
    from flipscale.cli.reporting import report_run

    report_run(run, out)


@evaluation_app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs, checkpoints, OpenCLIP directories; local-dir:PATH, NAME:TAG, NAME:FILE of OpenCLIP.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("reports/compare"),
    zero_shot: ZeroShot = None,
    classnames: Classnames = "folders",
    templates: Templates = "openai7",
    metric: Metric = "top1",
    subset: Subset = None,
    retrieval: Retrieval = None,
    sets: Sets = None,
    root: Root = None,
    batch_size: EncodedBatch = 64,
) -> None:
    """Write a page that puts models beside each other, and beside what was published."""
    from flipscale.cli.evaluation import given_sets
    from flipscale.cli.reporting import compare_models

    chosen = given_sets(sets, zero_shot, classnames, templates, metric, subset, retrieval)
    compare_models(models, out, chosen, root, batch_size)

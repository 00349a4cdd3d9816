"""`flipscale import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.errors import UserError
from flipscale.terminal import say

if TYPE_CHECKING:
    from flipscale.interop.import_source import ImportSource
    from flipscale.interop.loaded_model import LoadedModel
    from flipscale.interop.verification import VerifyReport


def import_model(
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
    from flipscale.cli.openclip_messages import how_to_load, verification
    from flipscale.interop.import_source import find_import_source
    from flipscale.interop.loaded_model import build_with_tokenizer
    from flipscale.interop.openclip_export import check_place, export_openclip
    from flipscale.interop.verification import verify_export

    published = find_import_source(source, weights, pretrained, random)
    if published.directory is not None and published.directory.resolve() == out.resolve():
        raise UserError(f"{out} is the source itself; name another directory to import into")
    check_place(out)

    spec, state = published.read()
    trained = build_with_tokenizer(spec, state, published.directory)
    provenance = _provenance(f"{source}, {pretrained}" if pretrained else source, published)
    export_openclip(state, spec, out, tokenizer=trained.tokenizer, provenance=provenance)

    if published.directory is None or published.weights is not None:
        theirs = _verify_source(published, trained, pretrained, out)
        say(f"{source} computes here as in {verification(theirs)}")
    ours = verify_export(out, trained.model, trained.tokenizer)
    say(f"{out} imported and verified with {verification(ours)}")
    say(how_to_load(out, ours))


def _provenance(source: str, published: ImportSource) -> dict[str, str]:
    """Return what the model card says about the source."""
    from flipscale.runs.verification import sha256

    if published.weights is None:
        return {"imported from": source, "weights": "initial (seed 0)"}
    return {
        "imported from": source,
        "weights": published.weights.name,
        "SHA-256 of the weights": sha256(published.weights),
    }


def _verify_source(
    published: ImportSource, trained: LoadedModel, pretrained: str | None, out: Path
) -> VerifyReport:
    """Compare the model with what stock OpenCLIP computes from the source itself."""
    from flipscale.interop.verification import verify_against
    from flipscale.interop.weights import WEIGHTS

    # OpenCLIP makes random weights of its own: its builtin model is compared with the weights written here.
    weights = pretrained or str(published.weights or out / WEIGHTS)
    return verify_against(
        published.stock,
        trained.model,
        trained.tokenizer,
        pretrained=weights if published.directory is None else None,
        clip_scale="flipscale" not in published.config,  # an export holds the scale clipped
    )

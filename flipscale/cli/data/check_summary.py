"""What `flipscale data check` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flipscale.terminal import print_json, say

if TYPE_CHECKING:
    from flipscale.data.checks.summary import DataSummary


def print_check(summary: DataSummary, document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what a check found, as JSON or for a person.

    Args:
        summary: The summary.
        document: The JSON document; `clean` in it describes the shards of `--fix`.
        as_json: Whether to print the document.
    """
    if as_json:
        print_json(document)
        return

    _print_summary(summary)
    if "clean" in document:
        clean = document["clean"]
        say(f"clean: {clean['samples']} samples in {clean['shards']}")
        if clean["left_out"]:
            say(f"left out: {clean['left_out']} usable samples whose key another one in their shard has")


def _print_summary(summary: DataSummary) -> None:
    """Print the summary of a check, with an example of each kind of unusable sample."""
    from flipscale.cli.console import print_table
    from flipscale.data.quarantine import kind
    from flipscale.formatting import format_megabytes

    say(
        f"{summary.samples} samples in {summary.shards} shards: "
        f"{len(summary.bad)} cannot be used ({format_megabytes(summary.bytes)} in all)"
    )
    say("samples with a caption: " + ", ".join(f"{n} in {name}" for name, n in summary.captions.items()))
    say(
        f"shorter side in pixels: {_quantiles(summary.shorter_side_pixels)}; "
        f"words per caption: {_quantiles(summary.caption_words)}"
    )
    say(
        f"come more than once: {summary.duplicate_keys} keys "
        f"({summary.duplicate_keys_within_a_shard} of them within one shard), "
        f"{summary.duplicate_images} images"
    )
    for damage in summary.damaged_shards:
        say(f"{damage.path} is damaged: {damage.reason}")
    if summary.images_of_no_sample:
        say(
            f"{sum(summary.images_of_no_sample.values())} images belong to no sample, since a key ends at "
            f"the first dot of a name, and data.images names the extensions: "
            f"{next(iter(summary.images_of_no_sample))}"
        )
    if summary.members_of_no_sample:
        say(
            f"{sum(summary.members_of_no_sample.values())} other members belong to no sample: "
            f"{next(iter(summary.members_of_no_sample))}"
        )
    if summary.oddities:
        say("worth a look: " + ", ".join(f"{n} {name}" for name, n in summary.oddities.items()))

    if summary.bad:
        # Reversed, so that the first sample of a kind is its example.
        examples = {kind(record.reason): f"{record.key} in {record.path}" for record in reversed(summary.bad)}
        rows = [(reason, str(count), examples[reason]) for reason, count in summary.reasons.items()]
        print_table(("reason", "samples", "for example"), rows)


def _quantiles(quantiles: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in quantiles.items()) or "none"

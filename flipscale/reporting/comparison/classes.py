"""The section of a comparison with the classes on which models differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.evaluation.class_sets import class_set
from flipscale.evaluation.outcomes import Classified
from flipscale.reporting.comparison.results import Comparison, Result
from flipscale.reporting.page.blocks import Block, Cell, Column, Note, Section, Table
from flipscale.reporting.page.cells import count_cell, percent_cell

_CLASSES_SHOWN = 5  # at each end
_LEAST_IMAGES = 5  # classes with fewer are left out


@dataclass(frozen=True)
class ClassChange:
    """The top-1 of two models on one class."""

    number: int
    """The number of the class."""
    ours: float
    theirs: float
    images: int

    @property
    def gain(self) -> float:
        """The amount by which `ours` is above `theirs`."""
        return self.ours - self.theirs


def class_changes(ours: Result, theirs: Result, name: str, least: int) -> list[ClassChange]:
    """Compare two models class by class.

    Args:
        ours: The model whose gain is measured.
        theirs: The model that it is compared with.
        name: Name of the classification set.
        least: Classes with fewer images are left out.

    Returns:
        The changes, largest gain first; empty for a set whose images have several labels.
    """
    a = ours.evaluated.zero_shot[name]
    b = theirs.evaluated.zero_shot[name]
    if not isinstance(a, Classified) or not isinstance(b, Classified):
        return []

    changes: list[ClassChange] = []
    for number in range(a.classes):
        chosen = a.labels == number
        images = int(chosen.sum())
        if images >= least:
            our_top1 = float((a.places[chosen] == 0).mean())
            their_top1 = float((b.places[chosen] == 0).mean())
            changes.append(ClassChange(number, our_top1, their_top1, images))

    return sorted(changes, key=lambda change: -change.gain)


def class_section(comparison: Comparison) -> Section:
    """Show the classes with the largest gains and losses of each later model against the first."""
    first, *others = comparison.results

    tables: list[Block] = []
    for name, chosen in comparison.sets.zero_shot.items():
        names = class_set(chosen).names
        for other in others:
            changes = class_changes(other, first, name, _LEAST_IMAGES)
            if changes:
                tables.append(_table(name, changes, names, other, first))

    if not tables:
        few = f"There is no classification set with {_LEAST_IMAGES} or more images of a class."
        return Section("Classes", [Note(few, missing=True)])

    note = Note(
        f"The largest gains and losses in top-1, of classes with at least {_LEAST_IMAGES} images. Single "
        "classes have few images: most of this is chance."
    )
    return Section("Classes", [note, *tables])


def _table(
    name: str, changes: Sequence[ClassChange], names: Sequence[str], ours: Result, theirs: Result
) -> Table:
    """Show both ends of the changes, without classes on which the models are equal."""
    ends = [*changes[:_CLASSES_SHOWN], *changes[_CLASSES_SHOWN:][-_CLASSES_SHOWN:]]
    rows = [
        [
            Cell(names[change.number]),
            percent_cell(change.ours),
            percent_cell(change.theirs),
            Cell(f"{change.gain:+.1%}", change.gain, "good" if change.gain > 0 else "bad"),
            count_cell(change.images),
        ]
        for change in ends
        if change.ours != change.theirs
    ]

    columns = [
        Column("class", False),
        Column(ours.model.label),
        Column(theirs.model.label),
        Column("change"),
        Column("images"),
    ]
    return Table(columns, rows, f"{name}: {ours.model.label} against {theirs.model.label}")

"""Numbers that others published, stored with their sources: models, and the tables of the FLIP paper.

The files are `reporting/reference/models.csv` and `reporting/reference/paper_tables.csv`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class PublishedModel:
    """A published model with its scores (shares of 1); None stands for a number that was not published."""

    family: str
    """CLIP, OpenCLIP, OpenCLIP scaling, DataComp, FLIP, or CLIP reproduction (that of the FLIP paper)."""
    model: str
    weights: str
    """The tag of the weights in open_clip; empty if open_clip has none."""
    data: str
    samples_seen: int
    batch: int | None
    parameters_m: float
    """The number of parameters in millions."""
    training_flops: float
    gpu_hours: float | None
    imagenet_top1: float | None
    imagenet_v2_top1: float | None
    flickr_image_r1: float | None
    flickr_text_r1: float | None
    coco_image_r1: float | None
    coco_text_r1: float | None
    source: str


@dataclass(frozen=True)
class PaperTable:
    """A table of the FLIP paper, with its cells as printed there."""

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The rows: the case, then one cell per column; a cell is empty if the paper has no value."""
    source: str


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Return the published models in the order of the file."""
    return tuple(_model(row) for row in _rows("models.csv"))


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Return the tables of the FLIP paper in the order of the file."""
    tables: dict[str, list[dict[str, str]]] = {}
    for row in _rows("paper_tables.csv"):
        tables.setdefault(row["table"], []).append(row)

    return tuple(_table(number, rows) for number, rows in tables.items())


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("flipscale.reporting") / "reference" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _model(row: dict[str, str]) -> PublishedModel:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return PublishedModel(
        family=row["family"],
        model=row["model"],
        weights=row["weights"],
        data=row["data"],
        samples_seen=int(row["samples_seen"]),
        batch=int(row["batch"]) if row["batch"] else None,
        parameters_m=float(row["parameters_m"]),
        training_flops=float(row["training_flops"]),
        gpu_hours=number("gpu_hours"),
        imagenet_top1=number("imagenet_top1"),
        imagenet_v2_top1=number("imagenet_v2_top1"),
        flickr_image_r1=number("flickr_image_r1"),
        flickr_text_r1=number("flickr_text_r1"),
        coco_image_r1=number("coco_image_r1"),
        coco_text_r1=number("coco_text_r1"),
        source=row["source"],
    )


def _table(number: str, rows: list[dict[str, str]]) -> PaperTable:
    """Assemble a table from its cells, one of which is in each row of the file."""
    columns = tuple(dict.fromkeys(row["measure"] for row in rows))

    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["measure"]] = row["value"]
    body = tuple((case, *(values.get(column, "") for column in columns)) for case, values in cases.items())

    return PaperTable(number, rows[0]["title"], columns, body, rows[0]["source"])

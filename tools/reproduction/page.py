"""The document of an experiment as a Markdown page, and the figure of its curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flipscale.errors import UserError

Document = Mapping[str, Any]


def markdown(document: Document, figure: str | None = None) -> str:
    """Return the whole page.

    Args:
        document: What `make_document` returns.
        figure: Name of the image of the curves, which is in the directory of the page; None if there is none.
    """
    runs = document["runs"]
    lines = [f"# {document['title']}, {document['scale']} scale", "", document["protocol"], ""]
    if document["overrides"]:
        lines += [f"Changed for this call: `{'`, `'.join(document['overrides'])}`.", ""]
    lines += [
        f"{runs['done']} of {runs['planned']} runs done; commit {document['commit']}, {document['date']}, "
        f"{document['machine']}, training in {' and '.join(document['precision'])}. Figures are per cent. "
        f"{_spread(document)}",
        "",
    ]

    for table, caption in document["captions"].items():
        cells = [cell for cell in document["cells"] if cell["table"] == table]
        lines += [f"## {table}: {caption}", "", *_table(cells), ""]

    if document["speed"] is not None:
        lines += ["## Training time", "", *_speed(document["speed"]), ""]
        lines += [f"![Accuracy against training time]({figure})", ""] if figure else []

    lines += ["## Does the paper's order hold?", "", order_sentence(document["order"]), ""]
    lines += _order(document["order"])
    return "\n".join(lines) + "\n"


def order_sentence(order: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence that counts the verdicts on all pairs."""
    counts = Counter(pair["verdict"] for pair in order)
    parts = [f"holds for {counts['holds']}", f"does not hold for {counts['does not hold']}"]
    parts.append(f"is within the error for {counts['within error']}")
    if counts["one seed"]:
        parts.append(f"cannot be judged from one seed for {counts['one seed']}")
    if counts["not measured"]:
        parts.append(f"is not measured yet for {counts['not measured']}")

    return f"Of {len(order)} pairs of cells in one row or column, the paper's order {', '.join(parts)}."


def _name(place: Mapping[str, str]) -> str:
    """Name a cell of a table; the column is left out if it only says what is measured."""
    return place["row"] if place["column"] == "top-1" else f"{place['row']}, {place['column']}"


def _spread(document: Document) -> str:
    if document["deviation"] is None:
        return "With one seed there is no error to give."
    return (
        "± is half of the 95 % interval of the mean over seeds, from the standard deviation pooled over all "
        f"runs ({document['deviation']:.2f})."
    )


def _table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    timed = any(cell["paper_time"] is not None for cell in cells)
    headings = [f"{column}, {whose}" for column in columns for whose in ("paper", "here")]
    headings += ["time, paper", "time, here"] if timed else []
    lines = ["| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for row in rows:
        texts: list[str] = []
        for column in columns:
            (cell,) = (cell for cell in cells if (cell["row"], cell["column"]) == (row, column))
            texts += [f"{cell['paper']:.1f}", _ours(cell)]

        if timed:
            (cell,) = (cell for cell in cells if cell["row"] == row)
            texts += [f"{cell['paper_time']:.2f}", _relative(cell, cells[0])]
        lines.append(f"| {row} | " + " | ".join(texts) + " |")

    return lines


def _ours(cell: Mapping[str, Any]) -> str:
    if cell["ours"] is None:
        return "not measured"

    return f"{cell['ours']:.1f}" + ("" if cell["error"] is None else f" ± {cell['error']:.1f}")


def _relative(cell: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if cell["seconds"] is None or first["seconds"] is None:
        return "not measured"

    return f"{cell['seconds'] / first['seconds']:.2f}"


def _order(order: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| better in the paper | worse in the paper | paper | here | order |",
        "|---|---|---|---|---|",
    ]
    for pair in order:
        better, worse = pair["better"], pair["worse"]
        ours = "" if pair["difference"] is None else f"{pair['difference']:+.1f}"
        ours += "" if pair["error"] is None else f" ± {pair['error']:.1f}"
        verdict = f"**{pair['verdict']}**" if pair["verdict"] == "does not hold" else pair["verdict"]
        lines.append(
            f"| {better['table']}: {_name(better)} | {_name(worse)} | "
            f"{pair['paper']:+.1f} | {ours} | {verdict} |"
        )

    return lines


def _speed(speed: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Times over those of {speed['reference']}: to {speed['accuracy']:.1%} top-1 (which every run "
        "reaches; on the line between two evaluations), and of the whole budget. 95 % intervals over seeds.",
        "",
        "| | sooner at the same accuracy | shorter as a whole | masking reaches it sooner |",
        "|---|---|---|---|",
    ]
    for row, sooner in speed["sooner"].items():
        shorter = speed["shorter"][row]
        lines.append(f"| {row} | {_ratio(sooner)} | {_ratio(shorter)} | {sooner_verdict(sooner)} |")
    return lines


def sooner_verdict(ratio: Mapping[str, Any]) -> str:
    """Return whether the paper's order holds for a ratio of times: the masked run is the faster one."""
    if ratio["low"] is None or ratio["low"] <= 1.0 <= ratio["high"]:
        return "within error"

    return "holds" if ratio["mean"] > 1.0 else "does not hold"


def _ratio(ratio: Mapping[str, Any]) -> str:
    interval = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{ratio['mean']:.2f} times{interval}"


def draw_curves(speed: Mapping[str, Any], out: Path) -> None:
    """Draw the accuracy over the training time, with a line per seed.

    Args:
        speed: The part "speed" of the document.
        out: The image; its ending is its format.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "drawing a figure needs matplotlib; install it with `pip install 'flipscale[report]'`"
        ) from None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (row, curves) in enumerate(speed["curves"].items()):
        for seed, curve in enumerate(curves):
            seconds, accuracies = zip(*curve, strict=True)
            label = row if seed == 0 else None
            percent = [100 * accuracy for accuracy in accuracies]
            axes.plot(seconds, percent, color=f"C{number}", marker="o", markersize=3, label=label)

    axes.axhline(100 * speed["accuracy"], color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="training time (s)", ylabel="zero-shot top-1 (%)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out)

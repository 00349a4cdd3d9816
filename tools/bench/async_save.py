"""How long a checkpoint stops training: the copy of an asynchronous save compared with the whole save.

    python tools/bench/async_save.py --model vit_l16 --directory DIR --repeats 3 --out docs/benchmarks/PAGE.md

The state is the weights and both AdamW moments in fp32, in one process; each save gives both times.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.presets import preset
from flipscale.progress import Progress
from flipscale.runs.checkpoint_writer import CheckpointWriter


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_l16")
    parser.add_argument("--directory", type=Path, help="where to save (default: a temporary directory)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="Markdown page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        held, whole, size = measure(arguments.model, Path(directory), arguments.repeats)
    write_page(arguments.out, arguments.model, held, whole, size)


def measure(model_name: str, directory: Path, repeats: int) -> tuple[list[float], list[float], int]:
    """Save a model's state several times.

    Returns:
        Seconds for which each save stopped training, seconds until each was committed, and the
        bytes of the state.
    """
    parameters = dict(build_model(preset(model_name)).named_parameters())
    state = {
        f"{kind}.{name}": parameter.detach() if kind == "model" else torch.rand_like(parameter)
        for kind in ("model", "exp_avg", "exp_avg_sq")
        for name, parameter in parameters.items()
    }

    world = World(0, 1, 0, 1, torch.device("cpu"))
    writer = CheckpointWriter(directory, {"name": model_name}, 2, Progress(), world)
    writer.prepare(state.items())  # as the trainer does when it starts

    held: list[float] = []
    whole: list[float] = []
    for repeat in range(1, repeats + 1):
        began = time.perf_counter()
        writer.save(state.items(), Progress(samples_seen=repeat), permanent=False)
        held.append(time.perf_counter() - began)
        writer.wait()
        whole.append(time.perf_counter() - began)
        print(f"save {repeat}: held {held[-1]:.2f} s of {whole[-1]:.2f} s", flush=True)
        for path in sorted(directory.glob("samples_*"))[:-1]:
            shutil.rmtree(path)  # so that the disk has at most two

    writer.close()
    return held, whole, sum(tensor.nbytes for tensor in state.values())


def write_page(out: Path, model: str, held: list[float], whole: list[float], size: int) -> None:
    """Write the page.

    Args:
        out: Path of the page.
        model: Name of the model.
        held: Seconds for which each save stopped training.
        whole: Seconds until each save was committed.
        size: Bytes of the state.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()

    shares = [h / w for h, w in zip(held, whole, strict=True)]
    lines = [
        f"# Asynchronous save of {model} with AdamW",
        "",
        f"{size / 1e9:.2f} GB of state, one process on a CPU ({platform.machine()}), "
        f"torch {torch.__version__}, commit {commit or 'before the first'}.",
        f"Command: `python tools/bench/async_save.py --model {model} --repeats {len(held)} --out {out}`.",
        "",
        "A whole save copies the state, writes and syncs the files, hashes them and publishes the",
        "manifest; training stops only for the copy, into memory that is allocated at the start.",
        "Shares are of the same save.",
        "",
        "| save | training stopped / whole save |",
        "|---|---|",
        *(f"| {number} | {share:.1%} |" for number, share in enumerate(shares, start=1)),
        f"| median | {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) |",
        "",
    ]
    out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()

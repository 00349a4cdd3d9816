"""The speed of each attention kernel of PyTorch at the shapes of the presets: forward and backward.

    python tools/bench/attention_kernels.py --models vit_h14 vit_l16 --out PAGE.md

With half of 256 patches hidden, an image has 128 patches and the class token. A kernel that works on tiles of
128 tokens then computes two tiles per side for one token more. The kernels take turns in each round, so
that all see the same state of the machine. On a CPU (`--device cpu`) the numbers show only that the script
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flipscale.errors import UserError
from flipscale.models.masking import visible_count
from flipscale.models.presets import TowerSpec, preset

KERNELS = {
    "cuda": (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
}
WARM_UP = 3  # rounds before the clock counts: allocation, and plans of cuDNN


@dataclass(frozen=True)
class Shape:
    """The attention of one tower."""

    name: str
    tokens: int
    heads: int
    head_width: int
    causal: bool

    def flops(self, pairs: int) -> int:
        """Return the operations of forward and backward, as if every token attended to all."""
        return 3 * 4 * pairs * self.heads * self.tokens**2 * self.head_width


@dataclass(frozen=True)
class Result:
    """The times of one kernel at one shape."""

    shape: str
    tokens: int
    kernel: str
    """Its name; "chosen" for what PyTorch takes by itself."""
    seconds: tuple[float, float, float] | None
    """Lower quartile, median and upper quartile of forward and backward; None if it cannot run."""
    tflops: float | None
    """Model operations per second at the median, in 10^12."""
    error: str = ""


def shapes_of(model: str, mask_ratios: list[float]) -> Iterator[Shape]:
    """Yield the shapes of a model's towers; the image tower's once per mask ratio.

    Raises:
        UserError: If there is no such preset, or a ratio is outside [0, 1).
    """
    spec = preset(model)
    for ratio in mask_ratios:
        tokens = visible_count(spec.vision.patches, ratio) + 1
        yield _shape(f"{model} image, {ratio:.0%} hidden", spec.vision, tokens, causal=False)
    text = spec.text
    yield _shape(f"{model} text", text, text.context_length, causal=text.causal)


def _shape(name: str, tower: TowerSpec, tokens: int, *, causal: bool) -> Shape:
    return Shape(name, tokens, tower.heads, tower.width // tower.heads, causal)


def measure(shape: Shape, device: torch.device, pairs: int, rounds: int) -> list[Result]:
    """Return the times of every kernel at one shape.

    Args:
        shape: The shape.
        device: Where to run.
        pairs: The batch.
        rounds: Measurements of each kernel.
    """
    size = (pairs, shape.heads, shape.tokens, shape.head_width)
    qkv = [torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    kernels: dict[str, SDPBackend | None] = {"chosen": None}
    kernels |= {kernel.name.lower(): kernel for kernel in KERNELS[device.type]}

    times: dict[str, list[float]] = {name: [] for name in kernels}
    errors: dict[str, str] = {}
    for number in range(WARM_UP + rounds):
        for name, kernel in kernels.items():
            if name in errors:
                continue
            try:
                took = _once(qkv, kernel, shape.causal)
            except RuntimeError as error:
                errors[name] = str(error).splitlines()[0]
                continue
            if number >= WARM_UP:
                times[name].append(took)

    return [_result(shape, name, times[name], pairs, errors.get(name, "")) for name in kernels]


def _once(qkv: list[Tensor], kernel: SDPBackend | None, causal: bool) -> float:
    query, key, value = qkv
    device = query.device
    with nullcontext() if kernel is None else sdpa_kernel(kernel):
        _wait(device)
        before = time.perf_counter()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        mixed.backward(mixed.detach())
        _wait(device)
    took = time.perf_counter() - before
    for tensor in qkv:
        tensor.grad = None
    return took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _result(shape: Shape, kernel: str, times: list[float], pairs: int, error: str) -> Result:
    if error:
        return Result(shape.name, shape.tokens, kernel, None, None, error)
    low, median, high = statistics.quantiles(times, n=4)
    return Result(shape.name, shape.tokens, kernel, (low, median, high), shape.flops(pairs) / median / 1e12)


def write_page(results: list[Result], out: Path, device: torch.device, pairs: int, rounds: int) -> None:
    """Write the results as JSON and as a table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [
        "# Attention kernels",
        "",
        f"{date.today()}, torch {torch.__version__}, {name}, {pairs} pairs, bfloat16. Made by",
        f"`tools/bench/attention_kernels.py`; forward and backward, {rounds} rounds in turns.",
        "",
        "| shape | tokens | kernel | ms: median (quartiles) | TFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for one in results:
        cells = [one.shape, str(one.tokens), one.kernel]
        if one.seconds is None or one.tflops is None:
            cells += [f"not run: {one.error}", ""]
        else:
            low, median, high = (f"{1e3 * each:.3f}" for each in one.seconds)
            cells += [f"{median} ({low} to {high})", f"{one.tflops:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")

    out.write_text("\n".join(lines) + "\n")
    out.with_suffix(".json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")


def main() -> int:
    """Measure all shapes, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_h14", "vit_l16", "vit_b16"])
    parser.add_argument("--mask-ratios", nargs="+", type=float, default=[0.0, 0.5, 0.75])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30, help="at least 2")
    parser.add_argument("--device", choices=sorted(KERNELS), default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="the page; its JSON goes next to it")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA GPU; --device cpu shows that the script runs", file=sys.stderr)
        return 2

    device = torch.device(options.device)
    results: list[Result] = []
    try:
        for model in options.models:
            for shape in shapes_of(model, options.mask_ratios):
                results += measure(shape, device, options.pairs, max(2, options.rounds))
                print(f"measured {shape.name}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_page(results, options.out, device, options.pairs, max(2, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

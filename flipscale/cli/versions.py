"""`flipscale --version`."""

from __future__ import annotations

from typing import Annotated

import typer

from flipscale.terminal import say

_LIBRARIES = ("torch", "deepspeed", "fairscale", "open_clip_torch", "submitit", "webdataset")
"""What `--version` names, by the names of the packages."""
_TORCH_BUILDS = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
"""Variables of torch/version.py that are set if torch is built for a device, and its name."""


def installed_versions() -> dict[str, str]:
    """Return the versions of flipscale, Python and the libraries by name; nothing is imported to find them.

    A library whose package is missing is "not installed". The version of torch says what it is built for.
    """
    import platform
    from importlib import metadata

    import flipscale

    versions = {"flipscale": flipscale.__version__, "Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
            continue
        if name == "torch":
            versions[name] += f" ({_torch_build()})"
    return versions


def _torch_build() -> str:
    """Return what the installed torch is built for: CUDA 12.8, ROCm 6.4, or CPU only."""
    import re
    from importlib import metadata
    from pathlib import Path

    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
    except OSError:
        return "unknown build"

    for variable, device in _TORCH_BUILDS.items():
        # The lines are `cuda: Optional[str] = '12.8'`; None has no quotes.
        if match := re.search(rf"^{variable}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE):
            return f"{device} {match[1]}"
    return "CPU only"


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return

    versions = installed_versions()
    width = max(map(len, versions))
    for name, version in versions.items():
        say(f"{name:<{width}}  {version}")
    raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        "-V",
        callback=_print_versions,
        is_eager=True,
        help="Print the versions of flipscale, Python and the main libraries.",
    ),
]

"""Install the torchvision that was built for the installed torch, if the installed one was not.

torch from the index of CPU builds comes without its torchvision, so that pip takes the one of the registry,
which was built for another torch. `import open_clip` then fails: "operator torchvision::nms does not exist".
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from flipscale.third_party import torchvision_remedy


def main() -> None:
    """Try the import, and install the other build if it fails; without a network, say how."""
    if _imports():
        return

    command = torchvision_remedy()
    words = [sys.executable, "-m", *shlex.split(command), "--retries=1", "--timeout=20"]
    done = subprocess.run(words, capture_output=True, check=False)  # the warning says all of a failure
    if done.returncode or not _imports():
        print(
            "warning: torchvision does not fit torch, so that `import open_clip` fails outside of flipscale; "
            f"run `{command}` with the index that torch came from, or write `from flipscale.third_party "
            "import import_open_clip; open_clip = import_open_clip()`",
            file=sys.stderr,
        )


def _imports() -> bool:
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    main()

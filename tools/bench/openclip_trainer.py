"""OpenCLIP's own trainer in this process, with the seconds of each of its epochs written down.

    python tools/bench/openclip_trainer.py PACKAGES SECONDS.json --model ... --train-data ...

PACKAGES is where webdataset <= 0.2.86 and pandas lie, which it needs; the rest are its own arguments. An
epoch's time is that of its `train_one_epoch`: without evaluation and without saving.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from flipscale.interop.torchvision_fix import import_open_clip


def main(packages: str, out: Path, *arguments: str) -> None:
    sys.path.insert(0, packages)
    import_open_clip()
    from open_clip_train import main as trainer

    seconds: list[float] = []
    train_one_epoch = trainer.train_one_epoch

    def timed(*given: Any, **named: Any) -> None:
        began = time.perf_counter()
        train_one_epoch(*given, **named)
        seconds.append(time.perf_counter() - began)

    trainer.train_one_epoch = timed
    trainer.main(arguments)
    out.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

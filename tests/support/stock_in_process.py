"""Stock open_clip in the process of a test, which has imported it already, in place of its own process."""

from __future__ import annotations

from pathlib import Path

from flipscale.interop.stock_features import write_stock_features


class _Done:
    """A process that has ended without an error."""

    returncode = 0


def run_stock_in_process(command: list[str], **_: object) -> _Done:
    """Write the features of stock open_clip, as the command would; in place of `subprocess.run`."""
    write_stock_features(Path(command[-1]))
    return _Done()

"""Which checkpoints of a run are deleted: those that were committed before the last few."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from flipscale.runs.commit_order import in_order_of_commit
from flipscale.runs.job_changes import belongs_to
from flipscale.runs.manifest import read_latest, read_manifest
from flipscale.runs.unfinished import discard

_log = logging.getLogger(__name__)


class Pruner:
    """Deletes old checkpoints of a run, in the order in which they were committed.

    It knows the checkpoint that this start resumed from, those that were committed before that one, and those
    that this start commits. Nothing else is touched: neither what was skipped as damaged at this start, nor
    what a person put there, nor links.

    Args:
        root: The directory of the checkpoints.
        job: The resolved job as a document; checkpoints of another job stay.
        keep_last: How many of the last commits stay, permanent ones included.
        resumed: Samples of the checkpoint that this start resumed from; 0 if there is none.

    Attributes:
        commits: The number of the last commit in the run; 0 if there is none.
    """

    def __init__(self, root: Path, job: Mapping[str, object], keep_last: int, resumed: int) -> None:
        self._root = root
        self._job = job
        self._keep_last = keep_last

        listed = in_order_of_commit(root)
        self.commits = max((entry.manifest.commit for entry in listed if entry.manifest), default=0)
        samples = [entry.samples for entry in listed]
        before = listed[: samples.index(resumed) + 1] if resumed in samples else []
        self._known = [entry.path for entry in before if entry.manifest and self._is_own(entry.path)]

    def committed(self, path: Path) -> None:
        """Count a checkpoint that this start has committed, and delete those that are too old now.

        What cannot be deleted stays, with a warning: the checkpoint is on disk all the same.

        Args:
            path: The new checkpoint, which LATEST names.
        """
        self.commits += 1
        self._known = [known for known in self._known if known != path] + [path]

        for old in self._known[: -self._keep_last]:
            try:
                self._delete_if_own(old)
            except (OSError, ValueError) as error:
                _log.warning("the old checkpoint %s stays, because it cannot be deleted: %s", old, error)

        # What stays is permanent, or will be tried again after the next save.
        self._known = [known for known in self._known if known.exists()]

    def _delete_if_own(self, path: Path) -> None:
        # Look again: since the start of this run, a person may have put something else in its place.
        if path.name == read_latest(self._root) or not self._is_own(path):
            return

        manifest = read_manifest(path)
        if not manifest.permanent:
            discard(path, manifest.progress.samples_seen)

    def _is_own(self, path: Path) -> bool:
        """Return whether a path is a directory with a whole manifest of this run."""
        if path.is_symlink():
            return False
        try:
            manifest = read_manifest(path)
        except (OSError, ValueError):
            return False
        return belongs_to(manifest.job, self._job, manifest.progress.samples_seen)

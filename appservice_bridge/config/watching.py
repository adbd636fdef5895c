"""Notices that the config file or a registration file says something else than before."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from appservice_bridge.config.files import other_than_a_file
from appservice_bridge.config.registrations import find

_COARSE_SECONDS: Final = 10.0  # a file may change twice within one tick of its file system's clock

Stamp = tuple[int, int, int]


class FileWatch:
    """Looks at files by time and size first, and reads only those that may have changed.

    A change counts when two looks in a row find the same: a file that is still being written, or
    that an editor has just moved away, is not what the operator means. What differs at the first
    look is not known: it counts as a change.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        self._stamps: dict[Path, tuple[Stamp, bytes]] = {}
        self._seen: Mapping[Path, bytes] | None = None
        self._told: Mapping[Path, bytes] | None = None

    def changed(self, patterns: Iterable[str], others: Iterable[Path] = ()) -> bool:
        """Whether there is something new since the last time it was said; reads the disk.

        Args:
            patterns: of the registration files, relative to the config file.
            others: files that count as well.
        """
        files, _ = find(list(patterns), base=self._config.parent)
        now = {path: self._digest(path) for path in [self._config, *files, *others]}
        settled, self._seen = now == self._seen, now
        self._stamps = {path: self._stamps[path] for path in now if path in self._stamps}
        if not settled or now == self._told:
            return False
        self._told = now
        return True

    def _digest(self, path: Path) -> bytes:
        """SHA-256 of what it holds; nothing if it is no file or cannot be read."""
        try:
            found = path.stat()
            if other_than_a_file(found) is not None:
                return b""
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            known = self._stamps.get(path)
            settled = time.time() - found.st_mtime > _COARSE_SECONDS
            if known is not None and known[0] == stamp and settled:
                return known[1]
            digest = hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            self._stamps.pop(path, None)
            return b""
        self._stamps[path] = (stamp, digest)
        return digest

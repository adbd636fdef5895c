"""Files that hold secrets: written whole or not at all, and readable to their owner alone."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace the file atomically, mode 0600."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)

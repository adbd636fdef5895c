"""Reading small text files, with every way it can fail said in one line."""

import stat
from os import stat_result
from pathlib import Path
from typing import Final

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_than_a_file(found: stat_result) -> str | None:
    """What it is instead; to read such a thing may wait for ever, or never end."""
    return next((named for is_it, named in _KINDS if is_it(found.st_mode)), None)


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, a leading byte order mark left out.

    Raises:
        ValueError: missing, not a file, not permitted, or not UTF-8; the message names no path.
    """
    try:
        if (what := other_than_a_file(path.stat())) is not None:
            raise ValueError(f"is {what}, not a file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except PermissionError:
        raise ValueError("may not be read: permission denied") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: byte {error.start} cannot be decoded") from None


def read_secret(path: Path) -> str:
    """The one line of a secret's file, without the line end.

    Raises:
        ValueError: unreadable, empty, or more than one line; the message never shows the content.
    """
    secret = read_text(path).rstrip("\r\n")
    if not secret:
        raise ValueError("is empty; write the secret into it, on one line")
    if any(character in secret for character in "\r\n\0"):
        raise ValueError("holds more than one line; a secret is one line of text")
    return secret

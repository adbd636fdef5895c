"""Reading small text files, with every way it can fail said in one line."""

from pathlib import Path


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, a leading byte order mark left out.

    Raises:
        ValueError: missing, not a file, not permitted, or not UTF-8; the message names no path.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except IsADirectoryError:
        raise ValueError("is a directory, not a file") from None
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

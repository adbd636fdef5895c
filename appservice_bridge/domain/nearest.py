"""What a word was most likely meant to be."""

import difflib
from collections.abc import Iterable
from typing import Final

_NEAR: Final = 0.6  # difflib's own default; below it suggestions are noise


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, if any comes near."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=_NEAR)
    return by_folded[close[0]] if close else None


def hint(word: str, known: Iterable[str]) -> str:
    """What to say of a word that is not known: the one that was meant, or those there are."""
    known = sorted(known)
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"there are: {', '.join(known) or 'none'}"

"""The homeserver's copy of a registration: its url points at the relay, all else stays."""

import json
from typing import Any, Final

import yaml

from appservice_bridge.config.document import Document, parse
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.registrations import ENCRYPTION

_URL: Final = "url"


def homeserver_copy(document: Document, *, url: str) -> str:
    """Text of the copy, comments and order kept where the file's form allows it.

    Native encryption is switched off: the homeserver's own copies of that
    traffic carry no stream id and could not be told from the bridge's.
    """
    changes: dict[str, Any] = {_URL: url}
    if document.data.get(ENCRYPTION) not in {None, False}:
        changes[ENCRYPTION] = False
    wanted = document.data | changes
    edited = _edited(document, changes)
    if _says(edited, wanted):
        return edited
    # Anchors, merge keys and the like: say the same in plain form.
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=1_000_000)


def _edited(document: Document, changes: dict[str, Any]) -> str:
    """The text with each value replaced where it stands; what is not there is put on top."""
    places = {key.value: value for key, value in document.root.value}
    edits = []
    for key, value in changes.items():
        written = json.dumps(value)
        node = places.get(key)
        if node is None:
            edits.append(_inserted(document.root, f"{key}: {written}"))
            continue
        start, end = node.start_mark.index, node.end_mark.index
        before = " " if start == end else ""  # nothing stands after the colon
        after = "\n" if document.text[start:end].endswith("\n") else ""
        edits.append((start, end, before + written + after))
    text = document.text
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    return text


def _inserted(root: yaml.MappingNode, line: str) -> tuple[int, int, str]:
    first = root.value[0][0].start_mark
    separator = ", " if root.flow_style else "\n" + " " * first.column
    return first.index, first.index, line + separator


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        read = parse(text, file="")
    except ConfigError:
        return False
    return read.data == wanted and not read.duplicates

"""A YAML file together with the line that each of its keys stands on."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.files import read_text

_TEXT: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"
# An alias or a tag may be a token that somebody forgot to quote.
_QUOTES_CONTENT: Final = re.compile(r"\b(alias|anchor|handle|tag) ['\"].*", re.DOTALL)

Location = tuple[str | int, ...]
"""Keys and list indexes from the top of a document, as pydantic writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One YAML mapping; its repr shows no content, which may be secret.

    Attributes:
        file: path, for messages.
        text: the file as it is, for edits that keep comments.
        data: what it says; keys are always the text as written (`on`, `123`).
        root: the same with places in `text`.
        duplicates: a fault for each key given twice; `data` holds the last.
    """

    file: str
    text: str = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    root: yaml.MappingNode = field(repr=False)
    duplicates: tuple[Fault, ...]

    def line(self, location: Location) -> int | None:
        """1-based line of a key or item; for what is not there, of the closest part that is."""
        node: yaml.Node = self.root
        line: int | None = None
        for part in location:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def fault(self, location: Location, reason: str) -> Fault:
        """A fault on the line of a key."""
        return Fault(file=self.file, line=self.line(location), reason=reason)


def read(path: Path) -> Document:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is empty or is no mapping.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError([Fault(file=str(path), reason=str(error))]) from None
    return parse(text, file=str(path))


def parse(text: str, *, file: str) -> Document:
    """Understand the text of one YAML mapping.

    Raises:
        ConfigError: not YAML, empty, or no mapping; one fault, one line, no content shown.
    """
    try:
        loader, root = _composed(text)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError([_no_mapping(root, file)])
        duplicates = tuple(_duplicates(root, file))
        _keep_keys_as_text(root)
        data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_not_yaml(error, file)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"not YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise ConfigError([Fault(file=file, line=line, reason=reason)]) from None
    except RecursionError:
        raise ConfigError([Fault(file=file, reason="not usable: nested too deeply")]) from None
    except ValueError:  # its message may quote the value
        reason = "a date or number cannot be read; put it in quotes if it is meant as text"
        raise ConfigError([Fault(file=file, reason=reason)]) from None
    return Document(file=file, text=text, data=data, root=root, duplicates=duplicates)


def _composed(text: str) -> tuple[yaml.SafeLoader | yaml.CSafeLoader, yaml.Node | None]:
    """By libyaml where there is one, four times as fast; what it refuses is worded without."""
    with suppress(yaml.YAMLError, AttributeError):
        quick = yaml.CSafeLoader(text)
        return quick, quick.get_single_node()
    loader = yaml.SafeLoader(text)
    return loader, loader.get_single_node()


def _no_mapping(root: yaml.Node | None, file: str) -> Fault:
    if root is None:
        return Fault(file=file, reason="is empty")
    reason = "must be a mapping: lines of `key: value`, with a space after the colon"
    return Fault(file=file, line=root.start_mark.line + 1, reason=reason)


def _not_yaml(error: yaml.MarkedYAMLError, file: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    problem = _QUOTES_CONTENT.sub(r"\1; quote text that begins with & * or !", error.problem or "")
    context = f"{error.context}: " if error.context and "'" not in error.context else ""
    reason = " ".join(f"not YAML: {context}{problem}".split())
    return Fault(file=file, line=mark.line + 1 if mark else None, reason=reason)


def _mappings(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Every mapping once, however often anchors repeat it."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _duplicates(root: yaml.MappingNode, file: str) -> Iterator[Fault]:
    for mapping in _mappings(root):
        first: dict[str, int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                reason = f"{key.value} is given twice, first on line {first[key.value]}; keep one"
                yield Fault(file=file, line=line, reason=reason)
            first.setdefault(key.value, line)


def _keep_keys_as_text(root: yaml.MappingNode) -> None:
    """Stop YAML from reading a key `on` as true, or `123` as a number."""
    for mapping in _mappings(root):
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                key.tag = _TEXT


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line and value of a key (the last of its name) or an item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line + 1, item
    return None

"""Validation errors in an operator's words: the key, what is wrong, what was likely meant."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError

from appservice_bridge.config.document import Location
from appservice_bridge.domain.nearest import nearest

_WORDS: Final[Mapping[str, str]] = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys to values",
    "extra_forbidden": "is not a known key",
    "list_type": "must be a list",
    "missing": "is missing",
    "model_attributes_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "path_type": "must be a path",
    "string_type": "must be text; put it in quotes",
    "string_unicode": "must not hold a lone surrogate",
    "tuple_type": "must be a list",
}

_ENTRIES: Final[Mapping[Any, str]] = {dict: ".<id>", tuple: "[]"}


def explained(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Each error as the place of the key and one line about it, which quotes no value."""
    for one in error.errors(include_url=False, include_input=False):
        if one["type"] == "default_factory_not_called":
            continue  # follows from a fault that has a line of its own
        location: Location = one["loc"] + tuple(one.get("ctx", {}).get("at", ()))
        words = _WORDS.get(one["type"]) or _in_plain_words(one["msg"])
        dotted = ".".join(map(str, location))
        hint = f"; {meant(location, model)}" if one["type"] == "extra_forbidden" else ""
        yield location, f"{dotted} {words}{hint}" if dotted else words


def meant(location: Location, model: type[BaseModel]) -> str:
    """What an unknown key was probably meant to be: near it, or else further away."""
    *above, key = map(str, location)
    siblings = _fields_at(tuple(above), model)
    near = nearest(key, siblings)
    if near is not None:
        return f"did you mean {near}?"
    paths = reversed(list(_all_paths(model)))  # of two with the same last part the first stays
    elsewhere = {path.rpartition(".")[2]: path for path in paths}
    far = nearest(key, elsewhere)
    if far is not None:
        return f"did you mean {elsewhere[far]}?"
    return f"known are {', '.join(siblings)}"


def _in_plain_words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _fields_at(location: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)  # an id or an index is no field: same model
        if field is not None:
            model = _model_in(field.annotation) or model
    return list(model.model_fields)


def _all_paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield above + name
        inner = _model_in(field.annotation)
        if inner is not None:
            entry = _ENTRIES.get(get_origin(field.annotation), "")
            yield from _all_paths(inner, f"{above}{name}{entry}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds: by itself, in a list, in a mapping, or optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in get_args(annotation))
    return next((model for model in inner if model is not None), None)

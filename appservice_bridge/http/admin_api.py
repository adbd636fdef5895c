"""The description of the admin port: OpenAPI, read from the one file where it is kept."""

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from aiohttp import web

from appservice_bridge.http.admin_auth import Role, needs

FILE: Final = Path(__file__).with_name("admin_api.yaml")


@needs(Role.NOBODY)
async def describe(_request: web.Request) -> web.Response:
    """The description; it holds nothing of this installation."""
    body = await asyncio.to_thread(_as_json)
    return web.Response(body=body, content_type="application/json")


def description() -> dict[str, Any]:
    """The file, with what it leaves out of its schemas: which members there must be, and no others.

    A schema that names the required ones itself has optional members.
    """
    told: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for schema in told["components"]["schemas"].values():
        _close(schema)
    return told


@lru_cache(maxsize=1)
def _as_json() -> bytes:
    return orjson.dumps(description())


def _close(schema: dict[str, Any]) -> None:
    members: dict[str, Any] = schema.get("properties", {})
    if members:
        schema.setdefault("required", list(members))
        schema.setdefault("additionalProperties", False)
    for member in members.values():
        _close(member)
    if "items" in schema:
        _close(schema["items"])

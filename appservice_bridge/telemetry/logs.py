"""Logs: thing.happened, then key=value; never a payload, never a token."""

import logging
import sys
from typing import Final

import structlog

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def configure(*, level: str = "info", as_json: bool = False) -> None:
    """Write log lines to stderr, for people or, with `as_json`, for programs."""
    for library in ("asyncpg", "aiohttp.server"):  # they may quote a row, or a url with its token
        logging.getLogger(library).setLevel(logging.CRITICAL)
    renderer: structlog.typing.Processor = structlog.processors.LogfmtRenderer(
        key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
    )
    if as_json:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )

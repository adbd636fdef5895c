"""What the bridge reads in Synapse's tables; the drift guard holds Synapse to it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Stream(StrEnum):
    """A stream of Synapse's that is read by position, by its name in stream_positions.

    Attributes:
        CACHES: has no positions there; signs of changed keys are in it.
        TASKS: nor has that of what Synapse set itself to do; its own clock is its position, in ms.
    """

    TO_DEVICE = "to_device"
    DEVICE_LISTS = "device_lists_stream"
    CACHES = "caches"
    TASKS = "scheduled_tasks"


COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "users": {"name": "text"},
    "stream_positions": {"stream_name": "text", "stream_id": "bigint"},
    "device_inbox": {
        "user_id": "text",
        "device_id": "text",
        "stream_id": "bigint",
        "message_json": "text",
    },
    "device_lists_stream": {"stream_id": "bigint", "user_id": "text", "device_id": "text"},
    "user_signature_stream": {"stream_id": "bigint", "from_user_id": "text", "user_ids": "text"},
    "e2e_one_time_keys_json": {
        "user_id": "text",
        "device_id": "text",
        "algorithm": "text",
        "key_id": "text",
    },
    "e2e_fallback_keys_json": {
        "user_id": "text",
        "device_id": "text",
        "algorithm": "text",
        "key_id": "text",
        "used": "boolean",
    },
    "devices": {"user_id": "text", "device_id": "text", "hidden": "boolean"},
    "cache_invalidation_stream_by_instance": {
        "stream_id": "bigint",
        "cache_func": "text",
        "keys": "text[]",
        "invalidation_ts": "bigint",
    },
    "current_state_delta_stream": {
        "stream_id": "bigint",
        "room_id": "text",
        "type": "text",
        "state_key": "text",
        "event_id": "text",
        "prev_event_id": "text",
    },
    "current_state_events": {
        "event_id": "text",
        "room_id": "text",
        "type": "text",
        "state_key": "text",
        "membership": "text",
    },
    "room_memberships": {
        "event_id": "text",
        "user_id": "text",
        "room_id": "text",
        "membership": "text",
    },
    "schema_version": {"version": "integer"},
}
"""Table and column to the type that Postgres calls it by."""

POLLED_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "scheduled_tasks": {"id": "text", "action": "text", "timestamp": "bigint", "params": "text"},
}
"""The same of what polling alone reads, and can do without."""

INBOX_TABLES: Final = frozenset({"device_inbox", "stream_positions"})
DEVICE_LIST_TABLES: Final = frozenset({"device_lists_stream", "devices", "stream_positions"})
SIGNATURE_TABLES: Final = frozenset({"user_signature_stream", "stream_positions"})
KEY_CHANGE_TABLES: Final = frozenset({"cache_invalidation_stream_by_instance"})
TASK_TABLES: Final = frozenset({"scheduled_tasks"})

"""How facts are captured in Synapse's tables; who installs the triggers is someone else's."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class CaptureMode(StrEnum):
    """How facts get out of Synapse's tables.

    Attributes:
        TRIGGERS: in the homeserver's own DB transaction.
        POLLING: by reading the same tables twice a second, and before each room event.
        NONE: not at all; there is no Synapse, or nothing was asked for.
    """

    TRIGGERS = "triggers"
    POLLING = "polling"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One statement-level trigger of ours on a table of Synapse's.

    Attributes:
        event: insert, update or delete.
        rows: what the function calls the rows, after an insert or update, before a delete.
    """

    table: str
    event: str
    function: str
    rows: str

    @property
    def name(self) -> str:
        """As it is called in the database."""
        return f"appservice_bridge_{self.event}"

    @property
    def create(self) -> str:
        """The statement that makes it; every name in it is a constant of this module."""
        which = "old" if self.event == "delete" else "new"
        return (
            f"create trigger {self.name} after {self.event} on public.{self.table} "
            f"referencing {which} table as {self.rows} "
            f"for each statement execute function appservice_bridge.{self.function}()"
        )


TRIGGERS: Final = (
    Trigger(table="device_inbox", event="insert", function="capture_device_inbox", rows="inserted"),
    Trigger(
        table="device_lists_stream", event="insert", function="capture_device_list", rows="inserted"
    ),
    Trigger(
        table="user_signature_stream",
        event="insert",
        function="capture_signatures",
        rows="inserted",
    ),
    *(
        Trigger(table=table, event=event, function="capture_device_keys", rows="changed")
        for table in ("e2e_one_time_keys_json", "e2e_fallback_keys_json")
        for event in ("insert", "update", "delete")
    ),
    Trigger(table="devices", event="delete", function="capture_device_deleted", rows="changed"),
)

CAPTURED: Final = tuple(dict.fromkeys(trigger.table for trigger in TRIGGERS))
READ: Final = (
    "users",
    "stream_positions",
    "current_state_delta_stream",
    "current_state_events",
    "room_memberships",
    "events",
    "event_json",
    "redactions",
    "room_aliases",
    "local_current_membership",
    "appservice_stream_position",
    "application_services_state",
    "cache_invalidation_stream_by_instance",
    "schema_version",
    *CAPTURED,
)
"""Tables of Synapse's that the bridge reads."""

POLLED: Final = ("scheduled_tasks",)
"""Those that it reads only where no trigger tells, and can do without."""

CLEANING: Final = (
    ("device_inbox", "DELETE"),
    ("sliding_sync_connections", "SELECT"),  # where it is not, none syncs that way
)
"""Tables and privileges that cleaning the inbox needs, too."""

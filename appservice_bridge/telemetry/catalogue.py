"""Every figure that a scrape reads, with what it says; docs/metrics.md lists them for operators."""

from typing import Final

from appservice_bridge.telemetry.sheet import Figure

_OF_ONE: Final = ("appservice",)

# Of this process.
UP: Final = Figure("up", "1 if this worker could read the database for this scrape")
INFO: Final = Figure("info", "Always 1; the release that runs", ("version",))
LEASES_HELD: Final = Figure("leases_held", "Lanes that this worker serves")
LEASES_HOLD: Final = Figure("leases_hold", "1 if this worker may send now")
POOL: Final = Figure(
    "database_connections", "Connections of this worker's pool, in_use or idle", ("state",)
)
POOL_LIMIT: Final = Figure("database_connections_limit", "Most connections of this worker's pool")

# Of each lane.
WAITING_ITEMS: Final = Figure("waiting_items", "Items routed and not acknowledged", _OF_ONE)
WAITING_BYTES: Final = Figure(
    "waiting_bytes", "Payload of these items, as far as it is stored here", _OF_ONE
)
WAITING_UPDATES: Final = Figure(
    "waiting_device_updates", "Users and devices to be told of, up to 10,000 of each", _OF_ONE
)
OLDEST: Final = Figure(
    "oldest_age_seconds",
    "Since the oldest waiting item was captured; 0: nothing waits. kind is all, or to_device, "
    "which has no sample if there is none among the first 1,000 that wait",
    ("appservice", "kind"),
)
STATE: Final = Figure("lane_state", "1 for the state the lane is in", ("appservice", "state"))
FAILED: Final = Figure(
    "failed_attempts", "Attempts since the last ack, all of which failed", _OF_ONE
)
FAILING: Final = Figure(
    "failing_since_timestamp_seconds", "When the first of these attempts failed", _OF_ONE
)
LAST_ACK: Final = Figure("last_ack_timestamp_seconds", "When the last ack came", _OF_ONE)
KEPT_BYTES: Final = Figure("kept_bytes", "Payload acknowledged and kept for a replay", _OF_ONE)
DEAD_LETTERS: Final = Figure(
    "dead_letters", "Items set aside for an operator; without an appservice: nobody's", _OF_ONE
)
LOW_DEVICES: Final = Figure(
    "devices_low_on_keys",
    "Devices with fewer than 10 one-time keys, among the first 1,000 of the appservice",
    _OF_ONE,
)

# Of all of it.
LEDGER: Final = Figure(
    "ledger_items",
    "What became of facts, as the ledger counts it; the reconciler's finds are outcome reconciled",
    ("appservice", "kind", "outcome"),
    counter=True,
)
LOG_FACTS: Final = Figure(
    "capture_log_facts", "Facts captured and not routed yet, counted up to 100,000"
)
LOG_AGE: Final = Figure(
    "capture_log_age_seconds", "Since the first of these facts was captured; 0: there are none"
)
MODE: Final = Figure("capture_mode", "1 for how facts are captured now", ("mode",))
DRIFT: Final = Figure(
    "capture_problems", "What the drift guard finds wrong with tables, rights and triggers"
)
UNREADABLE: Final = Figure("capture_unreadable_tables", "Tables of the homeserver's left out")
LOOKED: Final = Figure("capture_look_timestamp_seconds", "When the drift guard looked last")
BUDGET_USED: Final = Figure("budget_used_bytes", "What the bridge takes on the homeserver's disk")
BUDGET_LIMIT: Final = Figure("budget_limit_bytes", "What it may take")
BUDGET_USED_UP: Final = Figure("budget_used_up", "1: nothing but keys is stored")
WORKERS: Final = Figure("workers", "Workers that are alive")

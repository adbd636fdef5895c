"""What the ledger says became of a fact: one word for each way in, and for each way out."""

from enum import StrEnum


class LedgerOutcome(StrEnum):
    """Every word that is counted; `storage/audit.py` holds how they add up.

    On the way in, before anything has a place in an outbox:

    Attributes:
        FOREIGN: of a user whom nobody owns.
        NO_TRANSPORT: for an appservice to which nothing is delivered.
        NO_ENCRYPTION: of devices, for an appservice that takes no part in encryption.
        NATIVE_DROPPED: the homeserver's own copy of what is captured.
        REPEATED: a copy of what came before.
        REFUSED: it can never be routed: malformed, too large, or refused by the database. It is a
            dead letter, or was answered so.
        BACKFILLED, RECONCILED, RECOVERED: put into the log, in hindsight, and routed from there.
        WITHHELD: a room event that the homeserver itself keeps back.
        UNRECOVERABLE: a room event that nobody can read any more; a dead letter.

    Into an outbox:
        ROUTED: by intake.
        REDRIVEN: a dead letter, put back by an operator.
        REPLAYED: delivered before, and put in again by an operator.

    Out of it:
        DELIVERED: acknowledged.
        BURIED: a dead letter, for it was refused or is gone.
        DROPPED: its device was deleted first.
        EXPIRED: its time to live ran out before it was sealed; typing and presence only.
        REMOVED: with the appservice that it was for.

        SUSPECT: a transaction that was split though it may have been processed.

    And after that:
        DISCARDED: a dead letter that an operator dropped.
        CLEANED: a row that left the homeserver's inbox after its ack.
    """

    FOREIGN = "foreign"
    NO_TRANSPORT = "no_transport"
    NO_ENCRYPTION = "no_encryption"
    NATIVE_DROPPED = "native_dropped"
    REPEATED = "repeated"
    REFUSED = "refused"
    BACKFILLED = "backfilled"
    RECONCILED = "reconciled"
    RECOVERED = "recovered"
    WITHHELD = "withheld"
    UNRECOVERABLE = "unrecoverable"
    ROUTED = "routed"
    REDRIVEN = "redriven"
    REPLAYED = "replayed"
    DELIVERED = "delivered"
    BURIED = "buried"
    DROPPED = "dropped"
    EXPIRED = "expired"
    REMOVED = "removed"
    SUSPECT = "suspect"
    DISCARDED = "discarded"
    CLEANED = "cleaned"


INTO_OUTBOX = frozenset({LedgerOutcome.ROUTED, LedgerOutcome.REDRIVEN, LedgerOutcome.REPLAYED})
OUT_OF_OUTBOX = frozenset(
    {
        LedgerOutcome.DELIVERED,
        LedgerOutcome.BURIED,
        LedgerOutcome.DROPPED,
        LedgerOutcome.EXPIRED,
        LedgerOutcome.REMOVED,
    }
)

"""Who appends to the log and who listens for it name one channel."""

from appservice_bridge.blueprint.files import schema_directory
from appservice_bridge.storage.notifications import CAPTURE


def test_the_trigger_notifies_the_channel_that_intake_listens_on() -> None:
    function = (schema_directory() / "synapse" / "capture.sql").read_text(encoding="utf-8")
    assert f"pg_notify('{CAPTURE}', '')" in function

"""The bench beside a real Synapse, in a short form: it measures, and nothing is lost."""

from pathlib import Path

from appservice_bridge.bench.beside_synapse import loaded, unloaded
from appservice_bridge.bench.crowd import DEVICE, Crowd
from appservice_bridge.bench.receivers import Receivers
from appservice_bridge.dev.ports import LoopbackPort
from tests.support.homeserver import Client, Homeserver

FAR_TOO_LONG_MS = 10_000.0


async def test_the_bench_times_messages_and_finds_all_of_them(
    synapse: Homeserver, client: Client, fresh: str, tmp_path: Path
) -> None:
    people = await client.people(f"{fresh}_sender", 2)
    puppets = [
        await client.puppet("load", f"load_{fresh}_{number}", device=DEVICE) for number in range(4)
    ]
    crowd = Crowd(
        url=synapse.url,
        tokens=[one.token for one in people],
        recipients=[one.user_id for one in puppets],
    )
    port = LoopbackPort(synapse.appservices["load"].port.number)
    receivers = Receivers(tmp_path / "received.log", port)
    async with receivers.running():
        late = await unloaded(crowd, receivers, 10)
        load = await loaded(crowd, receivers, (2,), 40)
    assert 0 < late["latency"] <= late["latency-p99"] < FAR_TOO_LONG_MS
    assert load["2-delivered"] == 100
    assert load["2"] > 0
    assert load["2-p99"] < FAR_TOO_LONG_MS

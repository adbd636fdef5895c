"""The benchmark against native Synapse, in a short form: it measures, and nothing is lost."""

from pathlib import Path

from benchmarks.synapse_latency import Side, load, measure
from tests.homeserver.receiver import receiver
from tests.support.homeserver import Client, Homeserver

FAR_TOO_LONG_MS = 10_000.0


async def test_the_benchmark_measures_from_request_commit_and_answer_and_finds_all_messages(
    synapse: Homeserver, client: Client, fresh: str, tmp_path: Path
) -> None:
    people = await client.people(f"{fresh}_sender", 2)
    puppets = await client.puppets("load", f"load_{fresh}_", 4)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen:
        side = Side(
            name="bridge", of=synapse, bridged=True, receiver=seen, people=people, puppets=puppets
        )
        window = await measure(side, f"{fresh} window", messages=20, rate=20)
        closed_loop = await load(side, f"{fresh} load", senders=2, messages=40)
    assert (window.sent, window.lost) == (20, 0)
    for measured in (window.from_request, window.from_commit, window.from_answer):
        assert len(measured) == 20
        assert max(measured) < FAR_TOO_LONG_MS
    for request, commit in zip(window.from_request, window.from_commit, strict=True):
        assert 0 < commit < request  # on one clock, and the commit came after the request
    assert closed_loop.verdict.clean

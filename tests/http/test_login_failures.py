"""Wrong tokens at the admin port: an address has its share, and right ones always get in."""

from pathlib import Path

from appservice_bridge.http import login_failures
from appservice_bridge.http.login_failures import BURST, REFILL_SECONDS, LoginFailures
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection
from tests.support.reloading import ROOT, operator, with_tokens


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_its_share_an_address_is_told_to_wait_and_another_is_not() -> None:
    clock = Clock()
    failures = LoginFailures(clock)
    assert [failures.failed("10.0.0.1") for _ in range(BURST)] == [0] * BURST
    assert failures.failed("10.0.0.1") == REFILL_SECONDS
    assert failures.failed("10.0.0.2") == 0
    clock.now += REFILL_SECONDS
    assert failures.failed("10.0.0.1") == 0
    assert failures.failed("10.0.0.1") > 0


def test_all_addresses_of_an_ipv6_network_have_one_share() -> None:
    failures = LoginFailures(Clock())
    for n in range(BURST):
        assert failures.failed(f"2001:db8::{n:x}") == 0
    assert failures.failed("2001:db8::ffff:1") > 0
    assert failures.failed("2001:db8:0:1::1") == 0


def test_its_memory_is_bounded() -> None:
    failures = LoginFailures(Clock())
    for n in range(login_failures.MOST_ADDRESSES + 100):
        failures.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(failures._failures) == login_failures.MOST_ADDRESSES


async def test_who_guesses_is_slowed_down_and_locks_nobody_out(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = with_tokens(write_files(tmp_path, database, [registration("bot", None)]))
    async with (
        worker(files),
        operator(files, role="wrong") as guesser,
        operator(files, role="viewer") as viewer,
    ):
        answers = [await guesser.ask("GET", ROOT + "/whoami") for _ in range(BURST + 2)]
        assert [status for status, _ in answers[:BURST]] == [401] * BURST
        assert answers[-1][0] == 429
        assert answers[-1][1]["errcode"] == "M_LIMIT_EXCEEDED"
        assert answers[-1][1]["retry_after_ms"] > 0
        assert (await viewer.get("/whoami"))["name"] == "viewer"

"""What a bot's author sees through the fixtures, on a real Synapse."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
import yaml

from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.factories import AppserviceFactory, MatrixUserFactory
from appservice_bridge.testing.seen import Transaction
from tests.support.appservice import appservice as bot_over_http

COUNT = "signed_curve25519"


async def test_what_a_check_returned_no_other_check_returns(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice, bob = await matrix_user_factory("alice"), await matrix_user_factory("bob")
    for person, n in ((alice, 1), (bob, 2), (alice, 3)):
        await person.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"n": n})
    got = [
        await appservice.expect_to_device(type="m.test", sender=person.user_id)
        for person in (alice, alice, bob)
    ]
    assert [item["content"]["n"] for item in got] == [1, 3, 2]
    assert got[0]["to_device_id"] == puppet.device_id
    await appservice.expect_nothing(within=0.2)
    delivered = [item for one in appservice.transactions for item in one.to_device]
    assert [item["content"]["n"] for item in delivered] == [1, 2, 3]


async def test_real_encryption_goes_both_ways_without_a_bot(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(puppet.user_id)
    await appservice.expect_event(
        type="m.room.member", state_key=puppet.user_id, room_id=room_id, sender=alice.user_id
    )
    await puppet.join(room_id)
    await alice.see_join(room_id, puppet.user_id)
    await alice.say(room_id, "hello")
    key = await appservice.expect_to_device(type="m.room.encrypted", user_id=puppet.user_id)
    assert puppet.open(key)["type"] == "m.room_key"
    event = await appservice.expect_event(type="m.room.encrypted", room_id=room_id)
    assert puppet.read(event)["content"]["body"] == "hello"
    await puppet.say(room_id, "hello yourself")
    await alice.hear(room_id, puppet.user_id, "hello yourself")


async def test_who_types_is_waited_for_as_messages_are(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(puppet.user_id)
    await puppet.join(room_id)
    typing = f"/rooms/{room_id}/typing/{alice.user_id}"
    await alice.call("PUT", typing, {"typing": True, "timeout": 30_000})
    told = await appservice.expect_ephemeral(type="m.typing", room_id=room_id)
    assert told["content"] == {"user_ids": [alice.user_id]}


async def test_a_person_is_online_when_they_say_so_and_not_because_they_look(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(puppet.user_id)
    await puppet.join(room_id)
    await alice.see_join(room_id, puppet.user_id)
    status = f"/presence/{alice.user_id}/status"
    assert (await alice.call("GET", status))["presence"] == "offline"
    await alice.call("PUT", status, {"presence": "online", "status_msg": "here"})
    told = await appservice.expect_ephemeral(type="m.presence")
    assert (told["sender"], told["content"]["status_msg"]) == (alice.user_id, "here")


async def test_a_failed_attempt_comes_again_and_the_bot_sees_it_once(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    seen: list[str] = []

    async def handler(transaction: Transaction) -> None:
        await asyncio.sleep(0)  # it runs on a loop
        seen.extend(item["content"]["n"] for item in transaction.to_device)

    appservice = appservice_factory(handler)
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    appservice.fail_next(503, times=2)
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"n": "one"})
    await appservice.expect_to_device(type="m.test")
    assert seen == ["one"]
    failed = [attempt.txn_id for attempt in appservice.attempts if attempt.status == 503]
    taken = [one.txn_id for one in appservice.transactions]
    assert len(failed) == 2
    assert set(failed) <= set(taken)
    assert len(set(taken)) == len(taken)


async def test_a_handler_runs_on_the_tests_own_loop_and_answers_with_its_result(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    mine = asyncio.get_running_loop()
    answers: list[Exception | int | None] = [RuntimeError("a fault of the bot's"), 503, None]

    async def handler(transaction: Transaction) -> int | None:
        assert asyncio.get_running_loop() is mine
        if not transaction.to_device:
            return None
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    appservice = appservice_factory(handler)
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
    await appservice.expect_to_device(type="m.test")
    assert answers == []
    statuses = [attempt.status for attempt in appservice.attempts if attempt.items]
    assert statuses == [500, 503, 200]


async def test_what_is_held_is_not_seen_before_it_is_released(
    bridge: Bridge, appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    appservice.hold()
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
    held, pid = (await appservice.expect_held()).txn_id, bridge.pid
    await appservice.expect_nothing(within=0.2)
    await bridge.kill()  # the attempt that is held hangs up; its transaction comes again
    assert bridge.pid != pid
    appservice.release()
    await appservice.expect_to_device(type="m.test")
    assert [one.status for one in appservice.attempts if one.txn_id == held] == [None, 200]
    assert held in [one.txn_id for one in appservice.transactions]
    await appservice.expect_nothing(within=0.2)


async def test_after_a_crash_leases_may_run_out_as_in_production(
    bridge: Bridge, appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    await bridge.kill(restart=False)
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
    await appservice.expect_nothing(type="m.test", within=0.2)
    await bridge.start(wait_for_leases=True)
    await appservice.expect_to_device(type="m.test", within=60)


async def test_claiming_all_keys_is_told_with_an_explicit_zero(
    appservice_factory: AppserviceFactory,
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")

    def left(one: Transaction) -> int | None:
        return one.key_counts.get(puppet.user_id, {}).get(puppet.device_id, {}).get(COUNT)

    full = await appservice.expect_transaction(lambda one: left(one) == 5)
    assert await appservice.claim_all_keys() == 5
    await appservice.expect_transaction(lambda one: left(one) == 0, after=full)
    assert await appservice.claim_all_keys() == 0


async def test_a_bot_elsewhere_gets_the_same_bytes_and_its_answer_counts(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    async with bot_over_http() as bot:
        appservice = appservice_factory(f"{bot.url}/below")
        puppet = await appservice.puppet("one")
        alice = await matrix_user_factory("alice")
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"ä": 1})
        await appservice.expect_to_device(type="m.test")
        assert [item["content"] for item in bot.to_device] == [{"ä": 1}]
        assert all(request.path.startswith("/below/_matrix/app/v1/") for request in bot.requests)
        assert {request.token for request in bot.requests} == {appservice.hs_token}
        appservice.forget()
        bot.answer = lambda _request: (403, {}, b"{}")
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"ä": 2})
        await bot.until(lambda: len(bot.to_device) < len(bot.requests) - 1)
        await appservice.expect_nothing(within=0.2)


async def test_the_rest_of_the_api_is_answered_by_the_bot_or_by_nobody(
    bridge: Bridge, appservice_factory: AppserviceFactory
) -> None:
    async with aiohttp.ClientSession() as http, bot_over_http() as bot:
        appservice = appservice_factory()
        url = f"{appservice.registration['url']}/_matrix/app/v1/users/@x:{bridge.server_name}"
        token = {"Authorization": f"Bearer {appservice.hs_token}"}
        async with http.get(url, headers=token) as nobody:
            assert (nobody.status, (await nobody.json())["errcode"]) == (404, "M_NOT_FOUND")
        async with http.get(url) as stranger:
            assert stranger.status == 403
        appservice.connect(bot.url)
        async with http.get(url, headers=token) as somebody:
            assert somebody.status == 200
        assert [request.method for request in bot.requests] == ["GET"]


async def test_a_failed_check_says_what_came_instead_and_where_to_look(
    bridge: Bridge, appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    secret = {"body": "a-payload-that-nobody-prints"}
    await appservice.expect_transaction(lambda one: bool(one.key_counts))
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.first", secret)
    await appservice.expect_transaction(lambda one: bool(one.to_device))
    appservice.fail_next(429, times=1000)
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.second", secret)
    begun = len(appservice.attempts)
    await appservice.expect_attempts(begun + 2)
    with pytest.raises(AssertionError) as failed:
        await appservice.expect_to_device(type="m.second", sender=alice.user_id, within=0.1)
    said = str(failed.value)
    for part in (
        f"no to_device type=m.second sender={alice.user_id} within 0.1 s",
        f"appservice {appservice.id}",
        "lane: failing, 1 waiting",
        "answered 429 (fail_next)",
        "head of the outbox:",
        f"to_device for {puppet.user_id} {puppet.device_id}",
        "what came and was not expected:",
        f"to_device m.first from {alice.user_id}",
        *(str(log) for log in bridge.logs.values()),
    ):
        assert part in said
    assert secret["body"] not in said
    assert all(log.exists() for log in bridge.logs.values())


async def test_something_where_nothing_was_expected_fails(
    appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    appservice = appservice_factory()
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
    with pytest.raises(AssertionError, match=r"expected nothing sender=.*, and there was"):
        await appservice.expect_nothing(sender=alice.user_id, within=30)
    await appservice.expect_nothing(type="m.other", within=0.1)
    appservice.forget()
    await appservice.expect_nothing(within=0.1)


async def test_a_bridge_that_has_died_is_named_in_a_failed_check(
    bridge: Bridge, appservice_factory: AppserviceFactory
) -> None:
    appservice = appservice_factory()
    await bridge.kill(restart=False)
    try:
        with pytest.raises(AssertionError, match="bridge has ended with code -9"):
            await appservice.expect_event(within=0.1)
    finally:
        await bridge.start()


def test_a_test_without_a_loop_says_run(
    bridge: Bridge, appservice_factory: AppserviceFactory, matrix_user_factory: MatrixUserFactory
) -> None:
    taken: list[Transaction] = []
    appservice = appservice_factory(taken.append)
    puppet = bridge.run(appservice.puppet("one"))
    alice = bridge.run(matrix_user_factory("alice"))
    bridge.run(alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {}))
    bridge.run(appservice.expect_to_device(type="m.test"))
    assert any(one.to_device for one in taken)


async def test_a_registration_of_your_own_and_more_than_were_made_restart_synapse(
    bridge: Bridge,
    appservice_factory: AppserviceFactory,
    matrix_user_factory: MatrixUserFactory,
    tmp_path: Path,
) -> None:
    alice = await matrix_user_factory("alice")
    first = appservice_factory()
    while bridge._stage.slots.free:
        appservice_factory()
    document = first.registration | {
        "id": "mine",
        "as_token": "as_mine",
        "hs_token": "hs_mine",
        "sender_localpart": "mine",
        "namespaces": {"users": [{"exclusive": True, "regex": "@mine_.*"}]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    mine = appservice_factory(lambda _: None, registration=tmp_path / "mine.yaml")
    beyond = appservice_factory()
    assert (mine.id, mine.sender) == ("mine", f"@mine:{bridge.server_name}")
    env = json.loads(bridge.env_file.read_text())
    assert {"mine", beyond.id, first.id} <= set(env["appservices"])
    assert env["pids"]["bridge"] == [bridge.pid]
    os.kill(env["pids"]["synapse"], 0)
    for appservice in (first, mine, beyond):  # those from before, too
        puppet = await appservice.puppet("mine_two" if appservice is mine else "two")
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
        await appservice.expect_to_device(type="m.test", sender=alice.user_id, within=30)


async def test_what_it_costs(
    appservice_factory: AppserviceFactory,
    matrix_user_factory: MatrixUserFactory,
    record_property: Callable[[str, object], None],
) -> None:
    """Under 0.2 s on a quiet machine; the bound is for one that is not."""
    took: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        appservice = appservice_factory()
        puppet = await appservice.puppet("one")
        alice = await matrix_user_factory("alice")
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
        await appservice.expect_to_device(type="m.test")
        took.append(time.monotonic() - began)
    record_property("seconds", sorted(took))
    assert min(took) < 10

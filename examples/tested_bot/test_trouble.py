"""What becomes of messages when something is down."""

from conftest import TestedBot

from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.factories import MatrixUserFactory
from appservice_bridge.testing.seen import Transaction


async def test_it_answers_what_was_said_while_it_was_down(
    bot: TestedBot, matrix_user_factory: MatrixUserFactory
) -> None:
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(bot.user_id)
    await alice.see_join(room_id, bot.user_id)
    bot.appservice.fail_next(503, times=3)
    await alice.say(room_id, "are you there?")
    await alice.hear(room_id, bot.user_id, "are you there?")


async def test_it_answers_what_was_said_before_the_bridge_was_killed(
    bot: TestedBot, bridge: Bridge, matrix_user_factory: MatrixUserFactory
) -> None:
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(bot.user_id)
    await alice.see_join(room_id, bot.user_id)
    bot.appservice.hold()
    await alice.say(room_id, "before")
    await bot.appservice.expect_held()
    await bridge.kill()
    bot.appservice.release()
    await alice.hear(room_id, bot.user_id, "before")


async def test_it_makes_new_keys_when_all_are_claimed(bot: TestedBot) -> None:
    def left(transaction: Transaction) -> list[int]:
        devices = transaction.key_counts.get(bot.user_id, {}).values()
        return [counts["signed_curve25519"] for counts in devices]

    full = await bot.appservice.expect_transaction(lambda one: max(left(one), default=0) >= 25)
    assert await bot.appservice.claim_all_keys() >= 25
    few = await bot.appservice.expect_transaction(
        lambda one: max(left(one), default=99) < 25, after=full
    )
    await bot.appservice.expect_transaction(lambda one: max(left(one), default=0) >= 25, after=few)

"""What people get from the bot."""

from conftest import TestedBot

from appservice_bridge.testing.factories import MatrixUserFactory


async def test_it_joins_where_it_is_invited_and_answers_encrypted(
    bot: TestedBot, matrix_user_factory: MatrixUserFactory
) -> None:
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(bot.user_id)
    await alice.see_join(room_id, bot.user_id)
    await alice.say(room_id, "hello")
    await alice.hear(room_id, bot.user_id, "hello")


async def test_a_message_that_it_cannot_open_gets_no_answer(
    bot: TestedBot, matrix_user_factory: MatrixUserFactory
) -> None:
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(bot.user_id)
    await alice.see_join(room_id, bot.user_id)
    sent = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "nobody's"}
    await alice.call("PUT", f"/rooms/{room_id}/send/m.room.encrypted/1", sent)
    await bot.appservice.expect_event(type="m.room.encrypted", sender=alice.user_id)
    await bot.appservice.expect_nothing(type="m.room.encrypted", within=0.5)

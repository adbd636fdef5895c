"""Whose users an appservice owns."""

import pytest

from appservice_bridge.domain.registration import Namespace, Registration, relay_path

HERE = "example.org"


def bot(*namespaces: tuple[str, bool], sender: str = "mybot") -> Registration:
    return Registration(
        id="my-bot",
        url=None,
        as_token="SECRET-as",
        hs_token="SECRET-hs",
        sender_localpart=sender,
        users=tuple(Namespace(regex=regex, exclusive=alone) for regex, alone in namespaces),
        source="my-bot.yaml",
    )


def test_a_namespace_matches_from_the_start_and_need_not_reach_the_end() -> None:
    namespace = Namespace(regex="@irc_", exclusive=True)
    assert namespace.matches("@irc_anna:example.org")
    assert not namespace.matches("x@irc_anna:example.org")


@pytest.mark.parametrize("regex", ["(", "a{99999999999999999999}", "(" * 5000 + ")" * 5000])
def test_a_regex_that_does_not_compile_is_refused_in_one_line(regex: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a valid regex: .*$"):
        Namespace(regex=regex, exclusive=True)


def test_the_sender_is_owned_outside_all_namespaces() -> None:
    assert bot().owns("@mybot:example.org", server_name=HERE)
    assert bot().owns_exclusively("@mybot:example.org", server_name=HERE)
    assert not bot().owns("@mybot2:example.org", server_name=HERE)


def test_a_user_in_a_shared_namespace_is_owned_but_not_exclusively() -> None:
    registration = bot(("@mybot_.*", False))
    assert registration.owns("@mybot_1:example.org", server_name=HERE)
    assert not registration.owns_exclusively("@mybot_1:example.org", server_name=HERE)


def test_the_first_namespace_that_matches_decides_on_exclusiveness() -> None:
    shared_first = bot(("@.*", False), ("@mybot_.*", True))
    exclusive_first = bot(("@mybot_.*", True), ("@.*", False))
    assert not shared_first.owns_exclusively("@mybot_1:example.org", server_name=HERE)
    assert exclusive_first.owns_exclusively("@mybot_1:example.org", server_name=HERE)
    assert not exclusive_first.owns_exclusively("@anna:example.org", server_name=HERE)


@pytest.mark.parametrize(
    "user_id",
    [
        "@mybot:elsewhere.org",
        "@mybot_1:elsewhere.org:example.org",
        "@mybot_1:example.org:8448",
        "@mybot_1:sub.example.org",
        "@mybot_1",
        "#mybot_1:example.org",
        "",
    ],
)
def test_users_of_other_servers_are_never_owned(user_id: str) -> None:
    registration = bot((".*", True))
    assert not registration.owns(user_id, server_name=HERE)
    assert not registration.owns_exclusively(user_id, server_name=HERE)


def test_the_server_name_may_hold_a_port_and_starts_after_the_first_colon() -> None:
    assert bot().owns("@mybot:example.org:8448", server_name="example.org:8448")
    assert bot().owns("@mybot:[::1]:8448", server_name="[::1]:8448")


def test_the_repr_of_a_registration_shows_no_token() -> None:
    assert "SECRET" not in repr(bot())
    assert "my-bot" in repr(bot())


def test_the_relay_path_encodes_every_reserved_character() -> None:
    assert relay_path("a/b?c#d%e ü") == "/appservice/a%2Fb%3Fc%23d%25e%20%C3%BC"

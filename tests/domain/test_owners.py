"""Whose a user is: namespaces as Synapse matches them, and this homeserver's users only."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.registration import Namespace, Registration
from tests.support.properties import UNHURRIED

SERVER = "example.org"


def registered(appservice_id: str, *regexes: str, exclusive: bool = True) -> Registration:
    return Registration(
        id=appservice_id,
        url="http://127.0.0.1:1",
        as_token=f"as_{appservice_id}",
        hs_token=f"hs_{appservice_id}",
        sender_localpart=f"{appservice_id}_bot",
        users=tuple(Namespace(regex=regex, exclusive=exclusive) for regex in regexes),
        source="test",
    )


def owners(*registrations: Registration, server_name: str = SERVER) -> Owners:
    return Owners(registrations, server_name=server_name)


@pytest.mark.parametrize(
    ("regex", "user", "owned"),
    [
        ("@irc_", "@irc_alice:example.org", True),  # anchored at the start only
        ("@irc_", "@IRC_alice:example.org", False),
        ("irc_", "@irc_alice:example.org", False),
        (".*irc_", "@my_irc_alice:example.org", True),
        (r"@irc_[a-z]+:example\.org$", "@irc_alice:example.org", True),
        (r"@irc_[a-z]+:example\.org$", "@irc_1:example.org", False),
        (r"(?i)@irc_", "@IRC_alice:example.org", True),
        ("@a|@b", "@bob:example.org", True),
        ("", "@anyone:example.org", True),
    ],
)
def test_a_namespace_matches_as_python_s_re_match_does(regex: str, user: str, owned: bool) -> None:
    assert (owners(registered("irc", regex)).of(user) == ("irc",)) is owned
    assert owned is (re.match(regex, user) is not None)


@pytest.mark.parametrize("server_name", ["example.org", "example.org:8448", "[::1]:8008"])
def test_a_user_of_another_server_is_never_owned(server_name: str) -> None:
    of = owners(registered("all", ".*"), server_name=server_name)
    assert of.of(f"@anyone:{server_name}") == ("all",)
    for other in (
        "other.org",
        f"{server_name}.evil",
        f"evil.{server_name}",
        f"{server_name}:1",
        "",
    ):
        assert of.of(f"@anyone:{other}") == ()
        assert of.of(f"@all_bot:{other}") == ()


@pytest.mark.parametrize("user", ["", "@", ":", "anyone:example.org", "@anyone", ":example.org"])
def test_what_is_no_user_id_of_this_server_is_nobody_s(user: str) -> None:
    assert owners(registered("all", ".*")).of(user) == ()


def test_the_sender_is_owned_outside_of_every_namespace() -> None:
    of = owners(registered("irc", "@irc_.+"), registered("xmpp"))
    assert of.of("@xmpp_bot:example.org") == ("xmpp",)
    assert of.of("@irc_bot:example.org") == ("irc",)
    assert of.of("@xmpp_bot2:example.org") == ()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_user_in_two_namespaces_is_both_s_exclusive_or_not(exclusive: bool) -> None:
    of = owners(
        registered("b", "@shared_", exclusive=exclusive),
        registered("a", "@sha", exclusive=exclusive),
        registered("c", "@other"),
    )
    assert of.of("@shared_1:example.org") == ("a", "b")


@UNHURRIED
@given(st.text())
def test_owning_is_decided_for_any_text_without_failing(user: str) -> None:
    assert owners(registered("all", ".*")).of(user) in ((), ("all",))


def test_the_digest_of_the_namespaces_changes_with_the_users_and_with_nothing_else() -> None:
    one = registered("irc", "@irc_")
    before = owners(one).namespaces_digest("irc")
    same = replace(one, url="http://elsewhere", hs_token="new", rate_limited=False)
    assert owners(same).namespaces_digest("irc") == before
    assert owners(one, server_name="other.org").namespaces_digest("irc") != before
    assert owners(registered("irc", "@irc")).namespaces_digest("irc") != before
    assert owners(replace(one, sender_localpart="x")).namespaces_digest("irc") != before


def test_the_digest_of_all_does_not_depend_on_their_order() -> None:
    one, two = registered("a", "@a_"), registered("b", "@b_")
    assert owners(one, two).digest() == owners(two, one).digest()
    assert owners(one).digest() != owners(one, two).digest()

"""The homeserver's copy differs from the original in url and native encryption, and in no more."""

import pytest

from appservice_bridge.config.document import parse
from appservice_bridge.config.homeserver_copy import homeserver_copy

RELAY = "http://bridge:9009/appservice/my-bot"


def copied(text: str) -> str:
    return homeserver_copy(parse(text, file="bot.yaml"), url=RELAY)


def test_comments_order_quotes_and_unknown_keys_stay() -> None:
    original = """\
# mine
hs_token: 'SECRET'   # from the homeserver
url: http://bot  # the bot
org.matrix.msc3202: true # yes
de.sorunome.msc2409.push_ephemeral: true
rate_limited: false
fancy: [1.50, 2020-01-01, "a\\tb"]
id: my-bot
"""
    assert copied(original) == original.replace("url: http://bot ", f'url: "{RELAY}" ').replace(
        "msc3202: true", "msc3202: false"
    )


@pytest.mark.parametrize(
    "original",
    [
        "id: a\nurl: http://bot\n",
        "id: a # kept\nurl:\nx: 1\n",
        "id: a\nurl:",
        "id: a\nurl: null # none\n",
        "id: a\n",
        "\n  id: a\n  x: {y: 1}\n",
        "url: |\n  http://bot\nid: a # kept\n",
        "url: >-\n  http://bot\n\nid: a\n",
        "{id: a, url: http://bot}",
        '{"id": "a"}',
        "id: &a a\nurl: &u http://bot\nx: *u\ny: *a\n",
        "x: &u http://bot\nid: a\nurl: *u\n",
        "d: &d {url: http://bot, id: a}\n<<: *d\n",
        "? id\n: a\n",
        "? url\n: http://bot\n",
        "--- # start\nid: a\nurl: http://bot\n...\n",
        "id: a\r\nurl: http://bot\r\nx: 1\r\n",
        "id: \U0001f600\nurl: http://bot # \U0001f600\n",
        "org.matrix.msc3202: true\nid: a\n",
    ],
)
def test_whatever_the_form_of_the_file_only_url_and_encryption_differ(original: str) -> None:
    before = parse(original, file="bot.yaml").data
    after = parse(copied(original), file="copy.yaml").data
    changed = {"url": RELAY}
    if "org.matrix.msc3202" in before:
        changed["org.matrix.msc3202"] = False  # type: ignore[assignment]
    assert after == before | changed
    assert "#" not in original or "#" in copied(original)


def test_native_encryption_that_is_not_spoken_of_is_not_written() -> None:
    assert "msc3202" not in copied("id: a\nurl: http://bot\n")


def test_a_copy_of_a_copy_is_the_same() -> None:
    once = copied("id: a\nurl: http://bot # here\norg.matrix.msc3202: true\n")
    assert copied(once) == once

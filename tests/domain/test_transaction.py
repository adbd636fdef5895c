"""A body is a frame with the items' own bytes in it: which names, which order, which size."""

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice_bridge.domain.device_updates import (
    DeviceKeys,
    DeviceListUpdate,
    DeviceUpdates,
)
from appservice_bridge.domain.transaction import (
    Frame,
    Item,
    Kind,
    Profile,
    digest,
    frame_for,
    within_limits,
)
from tests.support.properties import UNHURRIED

SENT = [kind for kind in Kind if kind is not Kind.DROPPED]
UNSTABLE_TO_DEVICE: Final = "de.sorunome.msc2409.to_device"
UNSTABLE_EPHEMERAL: Final = "de.sorunome.msc2409.ephemeral"
PAYLOADS: Final = st.sampled_from(
    [
        b"{}",
        b'{ "n" : 1.10, "n" : 1e400 }',
        b'{"a":[{"b":"],["}]}',
        rb'{"u":"\ud800\u0000\""}',
        '{"ü":"🔑"}'.encode(),
    ]
)
SIZES: Final = st.integers(min_value=2, max_value=2000).map(b"x".__mul__)


@st.composite
def items(draw: st.DrawFn, payloads: "st.SearchStrategy[bytes]" = PAYLOADS) -> list[Item]:
    found = draw(st.lists(st.tuples(st.sampled_from(SENT), payloads), max_size=12))
    return [
        Item(position=position, kind=kind, payload=payload)
        for position, (kind, payload) in enumerate(found, start=1)
    ]


def body_of(of: list[Item], profile: Profile) -> bytes:
    return frame_for({item.kind for item in of}, profile).splice(of)


@pytest.mark.parametrize(
    ("profile", "kinds", "names"),
    [
        (Profile.UNSTABLE, [], ["events"]),
        (Profile.UNSTABLE, [Kind.EVENT], ["events"]),
        (Profile.UNSTABLE, [Kind.TO_DEVICE], ["events", UNSTABLE_TO_DEVICE]),
        (Profile.UNSTABLE, [Kind.EPHEMERAL], ["events", "ephemeral", UNSTABLE_EPHEMERAL]),
        (Profile.STABLE, [Kind.EPHEMERAL], ["events", "ephemeral"]),
        (Profile.STABLE, [Kind.TO_DEVICE], ["events", "to_device"]),
        (Profile.BOTH, [Kind.TO_DEVICE], ["events", "to_device", UNSTABLE_TO_DEVICE]),
        (Profile.BOTH, [Kind.EPHEMERAL], ["events", "ephemeral", UNSTABLE_EPHEMERAL]),
    ],
)
def test_a_profile_decides_the_names_and_events_are_always_there(
    profile: Profile, kinds: list[Kind], names: list[str]
) -> None:
    of = [Item(position=n, kind=kind, payload=b"{}") for n, kind in enumerate(kinds, start=1)]
    body = json.loads(body_of(of, profile))
    assert list(body) == names
    assert all(body[name] == [{}] for name in names if name != "events" or Kind.EVENT in kinds)


@UNHURRIED
@given(items(), st.sampled_from(Profile))
def test_a_body_is_json_that_holds_each_kind_in_order(of: list[Item], profile: Profile) -> None:
    body: dict[str, Any] = json.loads(body_of(of, profile))
    by_kind = {kind: [json.loads(i.payload) for i in of if i.kind is kind] for kind in Kind}
    assert body["events"] == by_kind[Kind.EVENT]
    for name, kind in (
        ("ephemeral", Kind.EPHEMERAL),
        (UNSTABLE_EPHEMERAL, Kind.EPHEMERAL),
        ("to_device", Kind.TO_DEVICE),
        (UNSTABLE_TO_DEVICE, Kind.TO_DEVICE),
    ):
        assert body.get(name, by_kind[kind]) == by_kind[kind]
    assert len(body) - 1 == sum(
        len(frame_for({kind}, profile).slots) - 1 for kind in {item.kind for item in of}
    )


@UNHURRIED
@given(items(st.binary(max_size=30)), st.sampled_from(Profile))
def test_an_item_s_bytes_are_never_touched(of: list[Item], profile: Profile) -> None:
    body = body_of(of, profile)
    for kind in {item.kind for item in of}:
        assert b"[" + b",".join(i.payload for i in of if i.kind is kind) + b"]" in body


@UNHURRIED
@given(items(), st.sampled_from(Profile))
def test_a_frame_that_was_stored_gives_the_same_bytes_again(
    of: list[Item], profile: Profile
) -> None:
    frame = frame_for([item.kind for item in of], profile)
    columns = ([bytes(piece) for piece in frame.pieces], [str(slot) for slot in frame.slots])
    again = Frame(pieces=tuple(columns[0]), slots=tuple(Kind(slot) for slot in columns[1]))
    assert again == frame
    assert digest(again.splice(of)) == digest(frame.splice(of))


@UNHURRIED
@given(
    items(SIZES),
    st.integers(min_value=1, max_value=13),
    st.integers(min_value=0, max_value=13),
    st.sampled_from(Profile),
)
def test_a_body_keeps_to_the_limits_unless_one_item_alone_is_too_large(
    of: list[Item], max_items: int, too_many: int, profile: Profile
) -> None:
    bytes_of_too_many = len(body_of(of[:too_many], profile))
    for unaware in (Profile.BOTH, profile):
        fitting = within_limits(
            of, max_items=max_items, max_body_bytes=bytes_of_too_many - 1, profile=unaware
        )
        assert min(1, len(of)) <= fitting <= max_items
        if fitting > 1:
            assert len(body_of(of[:fitting], profile)) < bytes_of_too_many


@UNHURRIED
@given(items(SIZES), st.sampled_from(Profile))
def test_room_that_is_there_is_used(of: list[Item], profile: Profile) -> None:
    plenty = len(body_of(of, profile)) + 600
    assert within_limits(of, max_items=100, max_body_bytes=plenty, profile=profile) == len(of)


def test_a_digest_is_sha_256() -> None:
    assert digest(b"").hex().startswith("e3b0c44298fc1c149afb")


@given(st.lists(st.sampled_from(["@a:x", "@é:x", '@"\\:x']), unique=True), st.sampled_from(Profile))
def test_device_updates_stand_beside_any_items_in_one_json_object(
    users: list[str], profile: Profile
) -> None:
    updates = DeviceUpdates(
        lists=tuple(DeviceListUpdate(user_id=user, change="changed") for user in users),
        keys=tuple(
            DeviceKeys(user_id=user, device_id='D"', counts={}, fallback_types=()) for user in users
        ),
    )
    item = Item(position=1, kind=Kind.EVENT, payload=b"{}")
    for items in ([], [item]):
        frame = frame_for((i.kind for i in items), profile, updates.fields(profile))
        body = json.loads(frame.splice(items))
        for name in names_of_lists(profile) if users else []:
            assert body.pop(name) == {"changed": users, "left": []}
        counted = {user: {'D"': {"signed_curve25519": 0}} for user in users}
        for name in [n for n in list(body) if "one_time" in n]:
            assert body.pop(name) == counted
        for name in [n for n in list(body) if "fallback" in n]:
            assert body.pop(name) == {user: {'D"': []} for user in users}
        assert body == {"events": [{} for _ in items]}


def names_of_lists(profile: Profile) -> list[str]:
    stable = ["device_lists"] if profile is not Profile.UNSTABLE else []
    unstable = ["org.matrix.msc3202.device_lists"] if profile is not Profile.STABLE else []
    return stable + unstable


def test_counts_go_out_under_every_name_that_a_client_library_reads() -> None:
    keys = DeviceKeys(user_id="@b:x", device_id="D", counts={"signed_curve25519": 3})
    body = json.loads(b"{" + DeviceUpdates(keys=(keys,)).fields(Profile.BOTH)[1:] + b"}")
    assert sorted(body) == [
        "device_one_time_keys_count",
        "org.matrix.msc3202.device_one_time_key_counts",
        "org.matrix.msc3202.device_one_time_keys_count",
    ]
    assert all(value == {"@b:x": {"D": {"signed_curve25519": 3}}} for value in body.values())

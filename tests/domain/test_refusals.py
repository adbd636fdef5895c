"""What follows a refusal, as a table; what the rows say is done in delivery's own tests."""

from typing import Any, Final

import pytest

from appservice_bridge.domain.outcome import Refused, Unreachable
from appservice_bridge.domain.refusals import (
    History,
    Probe,
    Replace,
    Replacement,
    SendAgain,
    Step,
    Thresholds,
    counts,
    may_have_processed,
    needs_ping,
    next_step,
    refusals_of_part,
)

MANY: Final[dict[str, Any]] = {"items": 10, "updates": 0}
ONE: Final[dict[str, Any]] = {"items": 1, "updates": 0}
MIXED: Final[dict[str, Any]] = {"items": 10, "updates": 2}
TOLD: Final[dict[str, Any]] = {"items": 0, "updates": 5}
USER: Final[dict[str, Any]] = {"items": 0, "updates": 1}
SUSPECT: Final[dict[str, Any]] = {
    "doubtful": True,
    "counted": True,
    "refusals": 20,
    "refused_seconds": 900.0,
}
AGAIN: Final = SendAgain()
HALVES: Final = Replacement.HALVES
LATER: Final = Replacement.UPDATES_LATER
FEWER: Final = Replacement.FEWER_UPDATES
ITEM: Final = Replacement.BURIED_ITEM
UPDATE: Final = Replacement.BURIED_UPDATE


def step(status: int, **known: Any) -> Step:
    """After an answer with this status, of which the history is this."""
    return next_step(Refused(status=status), History(**known), Thresholds())


@pytest.mark.parametrize("status", [400, 415, 422])
@pytest.mark.parametrize(
    ("known", "by"),
    [(MANY, HALVES), (ONE, ITEM), (MIXED, LATER), (TOLD, FEWER), (USER, UPDATE)],
)
def test_a_refusal_over_and_over_asks_for_a_probe_and_then_the_next_smaller_thing(
    status: int, known: dict[str, Any], by: Replacement
) -> None:
    assert step(status, **known, counted=True, refusals=1) == AGAIN
    assert step(status, **known, counted=True, refusals=2) == AGAIN
    assert step(status, **known, counted=True, refusals=3) == Probe(by=by)
    assert step(status, **known, counted=True, refusals=1, part=True) == Probe(by=by)
    after_probe = step(status, **known, counted=True, refusals=4, probed=True)
    assert after_probe == (Replace(by=by) if by.buries else Probe(by=by))


def test_what_is_too_large_is_split_at_once_and_buried_only_after_a_probe() -> None:
    assert step(413, **MANY, counted=True, refusals=1) == Replace(by=HALVES)
    assert step(413, **MIXED, counted=True, refusals=1) == Replace(by=LATER)
    assert step(413, items=1, updates=1, counted=True, refusals=1) == Replace(by=LATER)
    assert step(413, **TOLD, counted=True, refusals=1) == Replace(by=FEWER)
    assert step(413, **ONE, counted=True, refusals=1) == AGAIN
    assert step(413, **ONE, counted=True, refusals=3) == Probe(by=ITEM)
    assert step(413, **USER, counted=True, refusals=1, part=True) == Probe(by=UPDATE)
    assert step(413, **ONE, counted=True, refusals=4, probed=True) == Replace(by=ITEM)


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 407, 410, 421, 425, 429, 451])
@pytest.mark.parametrize("known", [MANY, ONE, MIXED, TOLD, USER])
def test_an_outage_splits_nothing_however_often_something_was_refused_before(
    status: int, known: dict[str, Any]
) -> None:
    refused = Refused(status=status)
    assert not counts(refused, doubtful=False)
    assert not counts(refused, doubtful=True)
    assert step(status, **known, refusals=99, refused_seconds=1e6) == AGAIN
    assert step(status, **known, refusals=99, refused_seconds=1e6, doubtful=True) == AGAIN


@pytest.mark.parametrize("status", [400, 413, 415, 422, 408, 500, 502, 503])
@pytest.mark.parametrize("known", [MANY, ONE, MIXED, TOLD, USER])
def test_what_may_have_been_processed_is_split_only_as_a_suspect(
    status: int, known: dict[str, Any]
) -> None:
    assert isinstance(step(status, **known | SUSPECT), Probe)
    assert step(status, **known | SUSPECT | {"refusals": 19}) == AGAIN
    assert step(status, **known | SUSPECT | {"refused_seconds": 899.0}) == AGAIN
    assert step(status, **known | SUSPECT | {"counted": False}) == AGAIN
    assert step(status, **known | SUSPECT | {"refusals": 19, "probed": True}) == AGAIN


@pytest.mark.parametrize(
    "failed", [Unreachable(reason="timeout"), Refused(status=404), Refused(status=500)]
)
@pytest.mark.parametrize("doubtful", [False, True])
def test_an_operator_s_word_splits_anything_and_buries_nothing(
    failed: Refused | Unreachable, doubtful: bool
) -> None:
    def asked(**known: Any) -> Step:
        history = History(**known, doubtful=doubtful, split_asked=True)
        return next_step(failed, history, Thresholds())

    assert asked(**MANY) == Replace(by=HALVES)
    assert asked(**MIXED) == Replace(by=LATER)
    assert asked(**TOLD) == Replace(by=FEWER)
    assert asked(**ONE) == AGAIN
    assert asked(**USER) == AGAIN


@pytest.mark.parametrize(
    "failed", [Unreachable(reason="timeout"), Refused(status=404), Refused(status=500)]
)
@pytest.mark.parametrize("doubtful", [False, True])
def test_an_operator_s_word_to_bury_buries_one_thing_and_splits_nothing(
    failed: Refused | Unreachable, doubtful: bool
) -> None:
    def asked(**known: Any) -> Step:
        history = History(**known, doubtful=doubtful, bury_asked=True)
        return next_step(failed, history, Thresholds())

    assert asked(**ONE) == Replace(by=ITEM)
    assert asked(**USER) == Replace(by=UPDATE)
    assert asked(**MANY) == AGAIN
    assert asked(**MIXED) == AGAIN
    assert asked(**TOLD) == AGAIN


def test_a_transport_that_does_not_answer_makes_no_suspect() -> None:
    history = History(**MANY, **SUSPECT | {"counted": False})
    assert next_step(Unreachable(reason="timeout"), history, Thresholds()) == AGAIN
    assert not counts(Unreachable(reason="timeout"), doubtful=True)


@pytest.mark.parametrize(
    ("failed", "doubtful"),
    [
        (Unreachable(reason="timeout"), True),
        (Unreachable(reason="reset"), True),
        (Unreachable(reason="disconnected"), True),
        (Unreachable(reason="connection_refused", unsent=True), False),
        (Unreachable(reason="timeout", unsent=True), False),  # while it connected
        (Refused(status=408), True),
        (Refused(status=500), True),
        (Refused(status=503), True),
        (Refused(status=599), True),
        (Refused(status=302), False),
        (Refused(status=400), False),
        (Refused(status=404), False),
        (Refused(status=429), False),
        (Refused(status=400, sent_before=True), True),
    ],
)
def test_only_a_definite_no_leaves_no_doubt(failed: Refused | Unreachable, doubtful: bool) -> None:
    assert may_have_processed(failed) is doubtful


def test_the_last_refusals_of_a_suspect_need_a_ping_each_and_so_do_those_of_its_parts() -> None:
    def needed(status: int, refusals: int, *, doubtful: bool = True) -> bool:
        return needs_ping(
            Refused(status=status), doubtful=doubtful, refusals=refusals, thresholds=Thresholds()
        )

    assert not needed(500, 16)
    assert needed(500, 17)
    assert needed(400, 19)
    assert not needed(404, 19)
    assert not needed(400, 19, doubtful=False)
    part = refusals_of_part(doubtful=True, thresholds=Thresholds())
    assert needed(500, part)
    assert refusals_of_part(doubtful=False, thresholds=Thresholds()) == 0

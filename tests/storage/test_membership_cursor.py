"""How far the stream of memberships is followed for good."""

from appservice_bridge.storage.membership_stream import Cursor, Delta, Deltas, moved


def deltas(*ids: int, bound: int, whole: bool = True) -> Deltas:
    rows = tuple(Delta(stream_id=n, room_id="!", user_id="@", was_joined=False) for n in ids)
    return Deltas(bound=bound, rows=rows, whole=whole)


def test_the_cursor_never_passes_what_a_full_batch_left_behind() -> None:
    after = moved(Cursor(settled=2), deltas(3, 5, bound=9, whole=False))
    assert (after.settled, after.recent) == (5, ())
    old = Cursor(settled=2, recent=(8,), noted=8, is_old=True)
    after = moved(old, deltas(3, 5, bound=0, whole=False))
    assert (after.settled, after.recent, after.noted) == (5, (8,), 8)


def test_no_more_than_so_many_ids_are_remembered() -> None:
    after = moved(Cursor(settled=0), deltas(1, 2, 3, 4, bound=0), most_recent=3)
    assert (after.settled, after.recent) == (1, (2, 3, 4))

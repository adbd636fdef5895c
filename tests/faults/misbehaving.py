"""Appservices that misbehave beside healthy ones."""

from tests.faults.judging import Exempt
from tests.faults.killing import moments
from tests.faults.stage import Stage

# 200 to what was not read is the appservice's own loss.
HOSTILE = {
    f"as{place}": mode
    for place, mode in enumerate(
        (
            *("slow", "hang", "flood", "huge-head", "garbage"),
            *("early", "reset", "wrong-length", "refuse"),
        ),
        start=2,
    )
}
EXEMPT = Exempt(
    loss=frozenset(one for one, mode in HOSTILE.items() if mode == "early"),
    stall=frozenset(HOSTILE),
)


async def misbehave(stage: Stage, seconds: float) -> None:
    """At the end they mend their ways, and whatever they did not take comes to them."""
    async for _ in moments(stage, seconds, 2.0, 5.0):
        stage.kill(stage.chance.choice(stage.workers))
        stage.count_deaths()
    for one, mode in HOSTILE.items():
        if mode != "early":
            stage.behave(one)
            stage.kill(stage.receivers[one])


async def refuse_items(stage: Stage, seconds: float) -> None:
    """Poison is buried, what is too large is split, and everything else comes in order."""
    async for _ in moments(stage, seconds, 2.0, 5.0):
        stage.kill(stage.chance.choice(stage.workers))
        stage.count_deaths()

"""A homeserver that repeats itself; the sender does it, and workers die in between."""

from tests.faults.killing import moments
from tests.faults.stage import Stage


async def repeat_requests(stage: Stage, seconds: float) -> None:
    async for _ in moments(stage, seconds, 1.5, 4.0):
        part = stage.chance.choice(stage.workers)
        stage.kill(part)
        part.start()

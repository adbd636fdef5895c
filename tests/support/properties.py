"""How much hypothesis tries: enough to find faults, little enough to be run all the time."""

from typing import Final

from hypothesis import HealthCheck, settings

# A busy machine is no fault: neither slow examples nor slow drawing.
UNHURRIED: Final = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

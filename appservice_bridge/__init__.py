"""Durable delivery of end-to-end encryption traffic from a Matrix homeserver to its appservices."""

from importlib.metadata import version

__version__ = version("appservice-bridge")

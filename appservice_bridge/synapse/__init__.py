from appservice_bridge.synapse.module import Module

__all__ = ["Module"]

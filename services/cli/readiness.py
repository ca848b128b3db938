"""Asks a service's `/readyz`, and ports whether they are free."""

import asyncio
import contextlib
import socket
from typing import Final

_MOST_BYTES: Final = 4096


async def probe(address: str, path: str = "/readyz", timeout_s: float = 1.0) -> str:
    """What the service says of itself: "ready", "starting" or "draining"; empty when it does not answer.

    Args:
        address: `host:port` of its HTTP.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
                answer = await reader.read(_MOST_BYTES)
                while len(answer) < _MOST_BYTES and (more := await reader.read(_MOST_BYTES - len(answer))):
                    answer += more
    except (OSError, TimeoutError):
        return ""
    head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    status = head.split(" ", 2)[1:2]
    if status == ["200"]:
        return "ready"
    return body.strip() if status == ["503"] else ""


def is_free(host: str, port: int) -> bool:
    """True where this process could listen on the port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probing.bind((host, port))
            probing.listen(1)
        except OSError:
            return False
    return True


def free_ports(host: str, count: int) -> list[int]:
    """`count` different ports that are free now; all are held until the last is found, so none comes twice."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            taken = held.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            taken.bind((host, 0))
            ports.append(taken.getsockname()[1])
        return ports

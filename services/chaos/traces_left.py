"""What a mesh at rest still holds: counts of what runs, files and threads of processes, readers of streams."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.chaos.beats import Beats
from services.chaos.core.faults import Role
from services.chaos.core.verdict import Footprint
from services.chaos.ground import Ground
from services.chaos.nats_operator import NatsOperator
from services.mesh import conventions as names
from services.mesh.subjects import STREAMS

_PAGE_BYTES: Final = 4096
_SCRAPE_S: Final = 5.0
_IN_ROUTERS: Final = (names.IN_FLIGHT, names.PLACEMENTS_OUT)


async def running(ground: Ground, beats: Beats) -> dict[tuple[str, str], float]:
    """(service, figure) -> count of what runs there now."""
    found: dict[tuple[str, str], float] = {}
    for router in _services(ground, Role.ROUTER):
        told = await _metrics(ground.http[router]) if router in ground.http else {}
        found |= {(router, name): told[wire] for name in _IN_ROUTERS if (wire := name.replace(".", "_")) in told}
    for name, beat in beats.live().items():
        found[name, "running"], found[name, "waiting"] = beat.running, beat.waiting
    return found


def footprints(ground: Ground) -> dict[str, Footprint]:
    """What each process holds; nothing of those that do not run here, or where /proc does not tell."""
    found = {}
    for service in {target.name for target in ground.targets}:
        pid = ground.pid(service)
        if pid is not None and (footprint := _footprint(Path("/proc") / str(pid))) is not None:
            found[service] = footprint
    return found


async def readers(ground: Ground) -> int:
    """How many readers the bus's streams have that do not go by themselves. Raises BusUnavailable."""
    async with NatsOperator(ground.nats) as nats:
        found = [await nats.readers(stream.name) for stream in STREAMS]
    return sum(each.reading + each.staying for each in found)


def _footprint(process: Path) -> Footprint | None:
    try:
        threads = (process / "task").iterdir()
        resident = int((process / "statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
        return Footprint(sum(1 for _ in (process / "fd").iterdir()), sum(1 for _ in threads), resident)
    except OSError:
        return None


def _services(ground: Ground, role: Role) -> Sequence[str]:
    return [target.name for target in ground.targets if target.role is role]


async def _metrics(address: str) -> dict[str, float]:
    """The figures of a service's `/metrics`, summed over their labels; empty when it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_SCRAPE_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            answer = await reader.read(-1)
            writer.close()
    except (OSError, TimeoutError):
        return {}
    figures: dict[str, float] = {}
    for line in answer.decode("utf-8", "replace").partition("\r\n\r\n")[2].splitlines():
        if line and not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            figures[name] = figures.get(name, 0.0) + float(line.rpartition(" ")[2])
    return figures

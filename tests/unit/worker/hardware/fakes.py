"""A telemetry source that a test holds in its hand."""

import asyncio
from collections.abc import Mapping, Sequence

from services.mesh.accelerators import load_catalogue
from services.worker.core.devices import Device, Reading, visible
from services.worker.engine import EngineInfo, EngineStats
from services.worker.hardware.source import SourceUnavailable

CATALOGUE = load_catalogue()
H100 = "NVIDIA H100 80GB HBM3"
_MIB = 1 << 20


def gpu(name: str = H100, memory_mib: int = 81_559, *, index: int = 0, source: str = "nvml") -> Device:
    return Device(
        source=source,
        vendor=name.split(maxsplit=1)[0],
        name=name,
        memory_bytes=memory_mib * _MIB,
        index=index,
        uuid=f"GPU-{index}",
    )


def processor(name: str = "AMD EPYC 9755 128-Core Processor") -> Device:
    return Device(source="cpuinfo", vendor="AMD", name=name, memory_bytes=64 << 30, index=0, cpu=True)


class HeldSource:
    """Sees `devices`, and reads what the test has put into `readings`; an error there is raised."""

    interval_s = 0.0

    def __init__(
        self, *devices: Device, name: str = "nvml", measures: bool = True, missing: str = "", lacking: str = ""
    ) -> None:
        self.name = name
        self.measures = measures
        self.lacking = lacking
        self.readings: asyncio.Queue[Sequence[Reading] | Exception] = asyncio.Queue()
        self.read_devices: list[Sequence[Device]] = []
        self.closed = 0
        self._devices = devices
        self._missing = missing

    async def open(self) -> Sequence[Device]:
        if self._missing:
            raise SourceUnavailable(self._missing)
        return self._devices

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        return visible(devices, environment.get("CUDA_VISIBLE_DEVICES"))

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        self.read_devices.append(devices)
        answer = await self.readings.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed += 1


def info(**changes: object) -> EngineInfo:
    facts: dict[str, object] = {
        "engine": "vllm",
        "simulated": False,
        "models": ("m",),
        "context_tokens": 4096,
        "max_batch": 8,
        "max_waiting": 8,
        "kv_capacity_tokens": 4096,
        "prefill_chunk_tokens": 512,
    }
    return EngineInfo(**(facts | changes))  # type: ignore[arg-type]  # each is what the class says


def stats(*, running: int = 0, busy_s: float = 0.0, power_w: float = 105.0, energy_uj: int = 0) -> EngineStats:
    return EngineStats(
        running=running,
        waiting=0,
        waiting_prefill_tokens=0,
        kv_cache_usage=0.0,
        slowdown=1.0,
        power_w=power_w,
        busy_ns=round(busy_s * 1e9),
        energy_uj=energy_uj,
        steps=0,
    )

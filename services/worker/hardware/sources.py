"""Which sources there are: the built-in ones, and plug-ins by the entry point `tokenworks.telemetry`.

In: a name, or none. Out: sources, not opened; opened ones with the devices that they see.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final, cast

from services.mesh.errors import SettingInvalid
from services.worker.core.devices import Device
from services.worker.hardware.amdsmi import AmdSmiSource
from services.worker.hardware.cpu import CpuSource
from services.worker.hardware.habana import HabanaSource
from services.worker.hardware.neuron import NeuronSource
from services.worker.hardware.nvml import NvmlSource
from services.worker.hardware.source import SourceUnavailable, TelemetrySource
from services.worker.hardware.tpu import TpuSource
from services.worker.hardware.xpu import XpuSource

log = logging.getLogger(__name__)

ENTRY_POINTS: Final = "tokenworks.telemetry"
_OPEN_DEADLINE_S: Final = 20.0  # a driver that wakes its devices takes seconds
_CLOSE_DEADLINE_S: Final = 2.0

MakeSource = Callable[[], TelemetrySource]
_ACCELERATORS: Final[dict[str, MakeSource]] = {
    "nvml": NvmlSource,
    "amdsmi": AmdSmiSource,
    "hl-smi": HabanaSource,
    "neuron": NeuronSource,
    "tpu": TpuSource,
    "xpu-smi": XpuSource,
}


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one source sees.

    Attributes:
        devices: all of the machine's; empty where it cannot be read.
        visible: those that an engine in this environment may use, in its order.
        missing: why nothing is seen, or none of it may be used; empty where all is well.
        would_do: what would help, where something does.
    """

    source: TelemetrySource
    devices: tuple[Device, ...] = ()
    visible: tuple[Device, ...] = ()
    missing: str = ""
    would_do: str = ""


def all_sources() -> dict[str, MakeSource]:
    """Every source by name, in the order in which they are asked: accelerators, plug-ins, the machine's processor."""
    plugged = {each.name: _loading(each.name) for each in entry_points(group=ENTRY_POINTS)}
    return {**_ACCELERATORS, **plugged, CpuSource.name: CpuSource}


def choose_sources(name: str = "") -> list[TelemetrySource]:
    """The source called `name`, or all of them; not opened.

    Raises:
        SettingInvalid: there is none of that name, or it does not load; without a name, what does not load is logged.
    """
    known = all_sources()
    if not name:
        return [source for make in known.values() if (source := _made(make)) is not None]
    if name not in known:
        raise SettingInvalid(
            f"worker.telemetry = {name!r} is not known; use auto, catalogue, or one of: {', '.join(known)}"
        )
    return [known[name]()]


async def look(sources: Sequence[TelemetrySource], environment: Mapping[str, str]) -> list[Sighting]:
    """Opens the sources and says what each sees, in their order; those that see nothing are closed again."""
    return list(await asyncio.gather(*(_look(each, environment) for each in sources)))


async def close(source: TelemetrySource) -> None:
    """Lets a source go, whatever it is up to."""
    try:
        async with asyncio.timeout(_CLOSE_DEADLINE_S):
            await source.close()
    except TimeoutError:
        log.warning("%s does not close; it is left as it is", source.name)
    except Exception:  # a plug-in's, or a vendor's library in a state of its own
        log.exception("%s does not close as it should", source.name)


async def _look(source: TelemetrySource, environment: Mapping[str, str]) -> Sighting:
    devices: tuple[Device, ...] = ()
    try:
        async with asyncio.timeout(_OPEN_DEADLINE_S):
            devices = tuple(await source.open())
        left = tuple(source.visible(devices, environment))
        if left:
            return Sighting(source, devices, left)
        sighting = Sighting(source, devices, missing="the environment hides every device" if devices else "no devices")
    except SourceUnavailable as error:
        sighting = Sighting(source, devices, missing=str(error), would_do=error.would_do)
    except TimeoutError:
        sighting = Sighting(source, missing=f"{source.name} has not answered in {_OPEN_DEADLINE_S:g} s")
    except Exception as error:  # what a vendor's library raises is not ours to foresee, and no reason not to serve
        log.exception("%s fails", source.name)
        sighting = Sighting(source, devices, missing=f"{source.name} fails: {error!r}")
    await close(source)
    return sighting


def _made(make: MakeSource) -> TelemetrySource | None:
    try:
        return make()
    except SettingInvalid as error:
        log.error("%s", error)
        return None


def _loading(name: str) -> MakeSource:
    def make() -> TelemetrySource:
        (found, *_) = entry_points(group=ENTRY_POINTS, name=name)
        try:
            return cast("TelemetrySource", found.load()())
        except Exception as error:  # whatever a plug-in raises
            raise SettingInvalid(f"telemetry source {name!r} does not load ({found.value}): {error!r}") from error

    return make

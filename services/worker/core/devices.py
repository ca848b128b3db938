"""Devices as their vendors' libraries tell of them, and what the catalogue calls them. Pure.

In: a name and a size of memory. Out: the catalogue's accelerator, or none: a device that fits no row, or one that fits
two, is unknown, and never taken for a similar one. Memory tells variants apart that are called alike; libraries count
it with and without what they reserve, and in powers of two or ten, so it fits within a tolerance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from services.mesh.accelerators import Accelerator, Catalogue

_MEMORY_TOLERANCE: Final = 0.12  # 80 GB in the catalogue are 85.9e9 bytes to one library, 85.0e9 to the next
_CPU: Final = "cpu"  # what vLLM calls any processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device of this machine.

    Attributes:
        source: name of the source that sees it.
        name: as the vendor's library spells it.
        memory_bytes: 0 where the source does not tell.
        index: its number among the machine's devices of this vendor, as the vendor's tools count.
        uuid: empty where it has none.
        cpu: it is the machine's processor; one device, however many sockets it has.
    """

    source: str
    vendor: str
    name: str
    memory_bytes: int
    index: int
    uuid: str = ""
    cpu: bool = False

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 1e9:.0f} GB" if self.memory_bytes else ""
        return f"{self.name}{memory} (told by {self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one device draws and does at a moment; None is what its source does not tell.

    Attributes:
        utilisation: 0 to 1.
        energy_uj: a counter that never goes back; what it counts from is its own.
    """

    power_w: float | None = None
    utilisation: float | None = None
    energy_uj: int | None = None


def recognise(device: Device, catalogue: Catalogue) -> Accelerator | None:
    """The one accelerator of the catalogue that the device is; None when none fits, or more than one."""
    fitting = [each for each in _named(device.name, catalogue) if each.cpu == device.cpu and _holds(each, device)]
    return fitting[0] if len(fitting) == 1 else None


def contradicts(platform: str, accelerator: Accelerator, catalogue: Catalogue) -> bool:
    """Whether what an engine says it runs on is another accelerator than this.

    Args:
        platform: as in `EngineInfo.platform`, e.g. "cuda: NVIDIA L4"; a name that the catalogue does not know
            contradicts nothing.
    """
    kind, _, name = platform.partition(": ")
    if _CPU in (kind, name):
        return not accelerator.cpu
    one = accelerator.key.removesuffix(f"-x{accelerator.devices}") if accelerator.devices > 1 else accelerator.key
    named = _named(name or kind, catalogue)
    return bool(named) and all(each.key != one for each in named)


def row_for(device: Device) -> str:
    """The lines of tokenworks.toml that declare the device, with the figures left to whoever knows them."""
    key = "-".join("".join(each if each.isalnum() else " " for each in device.name.casefold()).split())
    return (
        f"[catalogue.accelerators.{key}]\n"
        f'vendor = "{device.vendor}"\nname = "{device.name}"\ndetect = ["{device.name}"]\n'
        + ("cpu = true\n" if device.cpu else "")
        + f"memory_gb = {round(device.memory_bytes / 1e9) or '…'}\n"
        'bf16_tflops = …\nbandwidth_tb_s = …\ntdp_w = …\nrate_usd_per_hour = "…"'
    )


def visible(devices: Sequence[Device], value: str | None) -> tuple[Device, ...]:
    """Those of the devices that a variable like CUDA_VISIBLE_DEVICES leaves, in its order.

    Args:
        value: indices, or beginnings of UUIDs, with commas; None: all. Like CUDA, it ends at the first that is not
            there. One that names nothing that is there was followed by a container's runtime already: all are visible.
    """
    if value is None or value.strip() == "all":
        return tuple(devices)
    names = [name.strip() for name in value.split(",")] if value.strip() else []
    if not names or names[0] in ("-1", "none", "void", "NoDevFiles"):
        return ()
    chosen: list[Device] = []
    for name in names:
        device = next((each for each in devices if _called(each, name)), None)
        if device is None:
            break
        chosen.append(device)
    return tuple(chosen) if chosen else tuple(devices)


def _called(device: Device, name: str) -> bool:
    if name.isdecimal():
        return device.index == int(name)
    return bool(device.uuid) and device.uuid.startswith(name)


def _named(name: str, catalogue: Catalogue) -> list[Accelerator]:
    plain = _plain(name)
    return [
        each
        for each in catalogue.accelerators.values()
        if any(fnmatchcase(plain, _plain(pattern)) for pattern in each.detect)
    ]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _holds(accelerator: Accelerator, device: Device) -> bool:
    if accelerator.cpu or not device.memory_bytes:
        return True
    return abs(device.memory_bytes - accelerator.memory_bytes) <= _MEMORY_TOLERANCE * accelerator.memory_bytes


def total(readings: Iterable[Reading]) -> Reading:
    """Several devices as one: watts and energy added up, the mean of utilisation; None where one of them lacks it."""
    every = list(readings)
    watts = [each.power_w for each in every if each.power_w is not None]
    busy = [each.utilisation for each in every if each.utilisation is not None]
    energy = [each.energy_uj for each in every if each.energy_uj is not None]
    complete = len(every) or -1
    return Reading(
        power_w=sum(watts) if len(watts) == complete else None,
        utilisation=sum(busy) / complete if len(busy) == complete else None,
        energy_uj=sum(energy) if len(energy) == complete else None,
    )

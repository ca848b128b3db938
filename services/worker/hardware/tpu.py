"""Google's TPUs, by the PCI bus: which chip, and how many. Their watts are not published to whoever uses them.

Source of the ids: the `tpu-info` tool's and JAX's tables of PCI devices.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.pci import PCI, VENDORS, pci_devices
from services.worker.hardware.source import SourceUnavailable

_GB: Final = 10**9
_CHIPS: Final = {
    0x005E: ("TPU v4", 32 * _GB),
    0x0062: ("TPU v5p", 95 * _GB),
    0x0063: ("TPU v5e", 16 * _GB),
    0x006F: ("TPU v6e", 32 * _GB),
    0x0076: ("TPU7x", 192 * _GB),
}


class TpuSource:
    """Implements `TelemetrySource`."""

    name = "tpu"
    measures = False
    lacking = "a TPU tells no watts"
    interval_s = 1.0

    def __init__(self, pci: Path = PCI) -> None:
        self._pci = pci

    async def open(self) -> Sequence[Device]:
        chips = [each for each in pci_devices(self._pci) if each.vendor == VENDORS[self.name] and each.device in _CHIPS]
        if not chips:
            raise SourceUnavailable("no TPU on the PCI bus")
        return [
            Device(
                source=self.name,
                vendor="Google",
                name=_CHIPS[chip.device][0],
                memory_bytes=_CHIPS[chip.device][1],
                index=index,
                uuid=chip.address,
            )
            for index, chip in enumerate(chips)
        ]

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        value = environment.get("TPU_VISIBLE_CHIPS", environment.get("TPU_VISIBLE_DEVICES"))
        return visible(devices, value)

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        return [Reading() for _ in devices]

    async def close(self) -> None:
        """Nothing is kept open."""

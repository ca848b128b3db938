"""What the PCI bus says is plugged in, whether or not a vendor's library is there to tell more.

In: /sys/bus/pci/devices. Out: vendor, device and class ids. Google's accelerators tell no more than this.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PCI: Final = Path("/sys/bus/pci/devices")
# Classes of devices that may be accelerators: displays, 3D controllers, and processing accelerators.
_CLASSES: Final = (0x03, 0x12)
# The vendors whose devices a source sees, by its name.
VENDORS: Final = {
    "nvml": 0x10DE,
    "amdsmi": 0x1002,
    "hl-smi": 0x1DA3,
    "neuron": 0x1D0F,
    "tpu": 0x1AE0,
    "xpu-smi": 0x8086,
}
_INTEGRATED: Final = "0000:00:02.0"  # where Intel's processors have their own graphics
_GAUDI: Final = 0x1DA3  # its vendor makes nothing else
# Of vendors whose other devices are on the bus too, or whose accelerators have a class of their own making.
_DEVICES: Final = {
    0x1AE0: frozenset({0x0027, 0x005E, 0x0062, 0x0063, 0x006F, 0x0076}),
    0x1D0F: frozenset({0x7064, 0x7065, 0x7066, 0x7067, 0x7164, 0x7264, 0x7364, 0x7564}),
}


@dataclass(frozen=True, slots=True)
class PciDevice:
    address: str
    vendor: int
    device: int
    device_class: int


def pci_devices(root: Path = PCI) -> list[PciDevice]:
    """All devices on the bus, by address; none where there is no such bus."""
    return list(_devices(root))


def plugged_in(source: str, devices: list[PciDevice]) -> int:
    """How many accelerators on the bus are of the vendor that `source` reads; 0 for a source of no such vendor."""
    return sum(_is_accelerator(each) for each in devices if each.vendor == VENDORS.get(source))


def _is_accelerator(device: PciDevice) -> bool:
    if device.vendor in _DEVICES:
        return device.device in _DEVICES[device.vendor]
    if device.vendor == VENDORS["xpu-smi"] and device.address == _INTEGRATED:
        return False
    return device.vendor == _GAUDI or device.device_class >> 16 in _CLASSES


def _devices(root: Path) -> Iterator[PciDevice]:
    for path in sorted(root.glob("*")):
        try:
            vendor, device, device_class = (
                int((path / name).read_text(encoding="ascii"), 16) for name in ("vendor", "device", "class")
            )
        except (OSError, ValueError):
            continue  # unplugged meanwhile, or no device
        yield PciDevice(path.name, vendor, device, device_class)

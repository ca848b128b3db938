"""A distribution of somebody else's that brings a telemetry source, installed as an installer would.

The source is the one that docs/hardware.md shows; what it reads is a file that stands for a meter on the rack.
"""

from pathlib import Path
from typing import Final

_MODULE: Final = """
import os
from pathlib import Path

from services.worker.core.devices import Device, Reading
from services.worker.hardware.source import SourceUnavailable


class AcmePower:
    name = "acme-power"
    measures = True
    lacking = ""
    interval_s = 0.01

    def __init__(self):
        self._meter = Path(os.environ["ACME_METER"])

    async def open(self):
        if not self._meter.exists():
            raise SourceUnavailable("the rack's meter is not plugged in", would_do="plug it in")
        return [
            Device(source=self.name, vendor="Acme", name="NVIDIA H100 80GB HBM3", memory_bytes=81_559 << 20, index=0)
        ]

    def visible(self, devices, environment):
        return devices

    async def read(self, devices):
        watts, joules = map(float, self._meter.read_text().split())
        return [Reading(power_w=watts, utilisation=0.5, energy_uj=round(joules * 1e6)) for _ in devices]

    async def close(self):
        pass
"""


def install_acme_power(site: Path) -> None:
    """Puts the module and its metadata into `site`, which is to be on the path."""
    (site / "acme_power.py").write_text(_MODULE, encoding="utf-8")
    info = site / "acme_power-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-power\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[tokenworks.telemetry]\nacme-power = acme_power:AcmePower\nbroken = acme_power:Nothing\n", encoding="utf-8"
    )


def show(meter: Path, *, watts: float, joules: float) -> None:
    """What the meter on the rack shows from now on."""
    new = meter.with_suffix(".new")
    new.write_text(f"{watts} {joules}", encoding="utf-8")
    new.replace(meter)


def unplug(meter: Path) -> None:
    """The meter shows nothing any more."""
    meter.unlink()

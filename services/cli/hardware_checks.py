"""What `tokenworks doctor` says of this machine's accelerators: which are seen, by what, and what would show more.

In: every source of telemetry, and the PCI bus, which knows of devices whose library is missing. Out: `Check`s.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Final

from services.cli.checks import Check, Severity
from services.mesh.accelerators import load_catalogue
from services.worker.core.devices import recognise, row_for
from services.worker.hardware.pci import PciDevice, pci_devices, plugged_in
from services.worker.hardware.sources import Sighting, choose_sources, close, look

_NAME: Final = "accelerators"


async def check_hardware() -> list[Check]:
    """Asks every source once, as a worker would."""
    sightings = await look(choose_sources(), os.environ)
    try:
        bus = pci_devices()
        found = [check for each in sightings for check in _checks(each, bus)]
    finally:
        for each in sightings:
            if each.visible:
                await close(each.source)
    absent = [each.source.name for each in sightings if not each.devices and not plugged_in(each.source.name, bus)]
    if absent:
        found.append(Check(_NAME, Severity.OK, f"nothing here for {', '.join(absent)} to see"))
    return found


def _checks(sighting: Sighting, bus: list[PciDevice]) -> Iterator[Check]:
    name, source = f"{_NAME}: {sighting.source.name}", sighting.source
    here = plugged_in(source.name, bus)
    if not sighting.visible:
        if sighting.devices:
            hidden = f"{len(sighting.devices)}, and none to use: {sighting.missing}"
            yield Check(name, Severity.NOTE, hidden, sighting.would_do)
        elif here:
            seen = f"{here} on the PCI bus, and not seen: {sighting.missing}"
            yield Check(name, Severity.NOTE, seen, sighting.would_do)
        return
    for device, count in Counter(
        (each.vendor, each.name, each.memory_bytes, each.cpu) for each in sighting.visible
    ).items():
        first = next(
            each for each in sighting.visible if (each.vendor, each.name, each.memory_bytes, each.cpu) == device
        )
        accelerator = recognise(first, load_catalogue())
        told = source.lacking or ("its watts are measured" if source.measures else "its watts are modelled")
        if accelerator is None:
            what = f"{count} x {first}: not in the catalogue; {told}"
            yield Check(name, Severity.NOTE, what, f"for worker.accelerator = 'auto', declare it:\n{row_for(first)}")
        else:
            yield Check(name, Severity.OK, f"{count} x {first}: {accelerator.key}; {told}")

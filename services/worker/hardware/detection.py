"""Which accelerator a worker runs on, and which source can tell its watts.

In: the settings, what the sources see, what the engine says it runs on. Out: an accelerator of the catalogue with who
told; a source with the devices to read; and in words what does not agree. What is not certain is refused by name:
`worker.accelerator` then has to say.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.accelerators import Accelerator, Catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.settings import WorkerSettings
from services.worker.core.devices import Device, contradicts, recognise, row_for
from services.worker.engine import EngineInfo
from services.worker.hardware.source import TelemetrySource
from services.worker.hardware.sources import Sighting

log = logging.getLogger(__name__)

AUTO: Final = "auto"
DECLARED: Final = "declared"


@dataclass(frozen=True, slots=True)
class Meters:
    """What the worker's own devices are read by; `note`, for a reader, says why nothing is read, or what lacks."""

    source: TelemetrySource | None = None
    devices: tuple[Device, ...] = ()
    note: str = ""


def detect(sightings: Sequence[Sighting], catalogue: Catalogue, devices: int) -> tuple[Accelerator, str]:
    """The accelerator that this machine has, `devices` of them as one, and the source that told.

    Args:
        devices: how many of the visible ones the engine uses, from the first on; >= 1.

    Raises:
        SettingInvalid: nothing is seen, what is seen is not in the catalogue, or it is not clear which of it is meant.
    """
    seen = [each for each in sightings if each.visible]
    found = [each for each in seen if not each.visible[0].cpu] or seen
    if not found:
        hints = "; ".join(f"{each.source.name}: {each.missing}" for each in sightings)
        raise SettingInvalid(f"worker.accelerator = 'auto', but no device is seen here ({hints}); declare it")
    first = found[0]
    others = [each for each in found[1:] if _vendors(each) - _vendors(first)]
    if others:
        told = " and ".join(str(each.visible[0]) for each in (first, *others))
        raise SettingInvalid(f"worker.accelerator = 'auto', and this machine has {told}; declare the one to use")
    used = first.visible[:devices]
    if len(used) < devices:
        raise SettingInvalid(
            f"worker.devices = {devices}, and {first.source.name} sees {len(used)}; lower it, or make more visible"
        )
    known = [recognise(each, catalogue) for each in used]
    for device, accelerator in zip(used, known, strict=True):
        if accelerator is None:
            raise SettingInvalid(
                f"worker.accelerator = 'auto', and the catalogue does not know {device}; declare what it is,"
                f" as one of {', '.join(sorted(catalogue.accelerators))}, or in tokenworks.toml:\n{row_for(device)}"
            )
    (accelerator, *rest) = (each for each in known if each is not None)
    if any(each.key != accelerator.key for each in rest):
        told = ", ".join(str(each) for each in used)
        raise SettingInvalid(f"worker.devices = {devices} are not alike: {told}; use fewer, or declare an accelerator")
    return accelerator.times(devices), used[0].source


def disagreements(
    accelerator: Accelerator, detected_by: str, info: EngineInfo, sightings: Sequence[Sighting], catalogue: Catalogue
) -> list[str]:
    """What of the machine and of the engine's own word does not agree with the accelerator, a sentence each."""
    found = []
    if info.platform and contradicts(info.platform, accelerator, catalogue):
        told = "worker.accelerator is" if detected_by == DECLARED else f"{detected_by} tells of"
        found.append(f"the engine says that it runs on {info.platform!r}, but {told} {accelerator.key}")
    if detected_by == DECLARED and sightings and not _own(accelerator, sightings, catalogue):
        seen = [device for each in sightings for device in each.visible if device.cpu == accelerator.cpu]
        what = ", ".join(dict.fromkeys(str(each) for each in seen)) or "no such device"
        found.append(f"worker.accelerator is {accelerator.key}, but this machine has {what}")
    return found


def meters(
    settings: WorkerSettings, accelerator: Accelerator, sightings: Sequence[Sighting], catalogue: Catalogue
) -> Meters:
    """What to read the worker's watts from: the source that `worker.telemetry` names, else one that sees the very
    accelerator; as many devices as the accelerator is, from the first visible on."""
    if settings.telemetry == AUTO:
        found = _own(accelerator, sightings, catalogue)
        if found is None:
            return Meters(note=f"no source sees {accelerator.key} here")
    else:
        found = next((each for each in sightings if each.visible), None)
        if found is None:
            return Meters(note="; ".join(f"{each.source.name}: {each.missing}" for each in sightings))
    devices = found.visible[: accelerator.devices]
    if len(devices) < accelerator.devices:
        return Meters(note=f"{found.source.name} sees {len(devices)} of {accelerator.devices} devices")
    if not found.source.measures:
        return Meters(note=found.source.lacking)
    return Meters(found.source, devices, found.source.lacking)


def _own(accelerator: Accelerator, sightings: Sequence[Sighting], catalogue: Catalogue) -> Sighting | None:
    """The first sighting whose first visible devices are this accelerator; one that measures, where there is one."""
    fitting = []
    for each in sightings:
        known = [recognise(device, catalogue) for device in each.visible[: accelerator.devices]]
        if known and all(one is not None and one.times(accelerator.devices).key == accelerator.key for one in known):
            fitting.append(each)
    return next((each for each in fitting if each.source.measures), fitting[0] if fitting else None)


def _vendors(sighting: Sighting) -> set[str]:
    return {each.vendor for each in sighting.visible}

"""Who a worker is: what every event and span of it says. Made once, at the wiring place."""

from dataclasses import dataclass

from services.mesh.accelerators import Accelerator
from services.mesh.confines import NO_SITE, Site
from services.mesh.settings import WorkerSettings
from services.worker.hardware.detection import DECLARED
from services.worker.hardware.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`epoch` is new at each start of the process; `detected_by` told the accelerator, see `hardware/machine.py`."""

    worker: str
    pool: str
    accelerator: Accelerator
    epoch: str
    detected_by: str = DECLARED
    site: Site = NO_SITE
    spot: bool = False


def identity_of(settings: WorkerSettings, machine: Machine, epoch: str) -> Identity:
    accelerator = machine.accelerator
    return Identity(
        worker=settings.id,
        pool=settings.pool or _pool(settings, accelerator),
        accelerator=accelerator,
        epoch=epoch,
        detected_by=machine.detected_by,
        site=Site(settings.region, settings.vendor or accelerator.vendor, settings.data_classes),
        spot=settings.spot,
    )


def _pool(settings: WorkerSettings, accelerator: Accelerator) -> str:
    """Workers that are planned for as one: of one kind, in one region, bought in one way."""
    return "-".join(filter(None, (accelerator.key, settings.region, "spot" if settings.spot else "")))

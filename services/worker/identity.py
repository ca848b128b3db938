"""Who a worker is: what every event and span of it says. Made once, at the wiring place."""

from dataclasses import dataclass

from services.mesh.accelerators import Accelerator
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


def identity_of(settings: WorkerSettings, machine: Machine, epoch: str) -> Identity:
    accelerator = machine.accelerator
    return Identity(
        worker=settings.id,
        pool=settings.pool or accelerator.key,
        accelerator=accelerator,
        epoch=epoch,
        detected_by=machine.detected_by,
    )

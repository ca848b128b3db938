"""Who a worker is: what every event and span of it says. Made once, at the wiring place."""

from dataclasses import dataclass

from services.mesh.accelerators import Accelerator, load_catalogue
from services.mesh.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`epoch` is new at each start of the process."""

    worker: str
    pool: str
    accelerator: Accelerator
    epoch: str


def identity_of(settings: WorkerSettings, epoch: str) -> Identity:
    """Raises SettingInvalid: the accelerator is not in the catalogue."""
    accelerator = load_catalogue().accelerator(settings.accelerator)
    return Identity(worker=settings.id, pool=settings.pool or accelerator.key, accelerator=accelerator, epoch=epoch)

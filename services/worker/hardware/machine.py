"""One worker's part of this machine: which accelerator it is, and what its watts are read by.

In: the settings and the environment. Out: the accelerator, who told, and, once the engine has started and says what it
runs on, the meters. What does not agree is logged by name. Devices are looked for when they are needed: not for a
simulated accelerator that is declared.
"""

import logging
import os
from collections.abc import Mapping

from services.mesh.accelerators import Accelerator, load_catalogue, split_devices
from services.mesh.errors import SettingInvalid
from services.mesh.events import MODELLED
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineInfo
from services.worker.hardware.detection import AUTO, DECLARED, Meters, detect, disagreements, meters
from services.worker.hardware.sources import Sighting, choose_sources, close, look

log = logging.getLogger(__name__)


class Machine:
    """What a worker runs on; made by `find_machine`.

    Attributes:
        accelerator: of the catalogue; several devices as one where the worker uses several.
        detected_by: the source that told, or `DECLARED`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        accelerator: Accelerator,
        detected_by: str,
        sightings: list[Sighting] | None,
        environment: Mapping[str, str],
    ) -> None:
        """`sightings`: None where nothing was looked for yet; the sources that see something are open."""
        self.accelerator = accelerator
        self.detected_by = detected_by
        self._settings = settings
        self._sightings = sightings
        self._environment = environment

    async def meters(self, info: EngineInfo) -> Meters:
        """What to read the watts of a started engine by; says in the log what does not agree with the settings."""
        settings, catalogue = self._settings, load_catalogue()
        if info.simulated or info.elsewhere or settings.telemetry == MODELLED:
            for disagreement in disagreements(self.accelerator, self.detected_by, info, (), catalogue):
                log.warning("%s", disagreement)
            return Meters(note="what is made elsewhere is not measured here" if info.elsewhere else "")
        if self._sightings is None:
            named = "" if settings.telemetry == AUTO else settings.telemetry
            self._sightings = await look(choose_sources(named), self._environment)
        for disagreement in disagreements(self.accelerator, self.detected_by, info, self._sightings, catalogue):
            log.warning("%s", disagreement)
        found = meters(settings, self.accelerator, self._sightings, catalogue)
        for each in self._sightings:
            if each.visible and each.source is not found.source:
                await close(each.source)
        self._sightings = []
        return found

    async def close(self) -> None:
        """Lets go of the sources that no meter has taken."""
        for each in self._sightings or ():
            if each.visible:
                await close(each.source)
        self._sightings = []


async def find_machine(settings: WorkerSettings, environment: Mapping[str, str] = os.environ) -> Machine:
    """The machine that a worker with these settings runs on.

    Raises:
        SettingInvalid: the accelerator is not in the catalogue, or `auto` and not to be found out, see `detect`; or
            `worker.telemetry` names no source.
    """
    catalogue = load_catalogue()
    if settings.telemetry not in (AUTO, MODELLED):
        choose_sources(settings.telemetry)
    if settings.accelerator != AUTO:
        one, several = split_devices(settings.accelerator)
        if settings.devices > 1 and several == 1:
            return Machine(settings, catalogue.accelerator(f"{one}-x{settings.devices}"), DECLARED, None, environment)
        if settings.devices not in (1, several):
            raise SettingInvalid(
                f"worker.accelerator = {settings.accelerator!r} and worker.devices = {settings.devices} disagree;"
                " leave one of them out"
            )
        return Machine(settings, catalogue.accelerator(settings.accelerator), DECLARED, None, environment)
    named = "" if settings.telemetry in (AUTO, MODELLED) else settings.telemetry
    sightings = await look(choose_sources(named), environment)
    try:
        accelerator, detected_by = detect(sightings, catalogue, settings.devices)
    except SettingInvalid:
        for each in sightings:
            if each.visible:
                await close(each.source)
        raise
    log.info("worker.accelerator = 'auto' is %s, told by %s", accelerator.key, detected_by)
    return Machine(settings, accelerator, detected_by, sightings, environment)

"""A worker's figures: measured while a source tells, modelled otherwise, and each says which."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.mesh.clock import FakeClock
from services.mesh.events import MODELLED
from services.mesh.settings import WorkerSettings
from services.worker.core.devices import Device, Reading
from services.worker.engine import EngineStats
from services.worker.hardware import machine as machine_module
from services.worker.hardware.machine import find_machine
from services.worker.hardware.power_meter import PowerMeter
from services.worker.hardware.source import SourceUnavailable
from tests.unit.worker.hardware.fakes import HeldSource, gpu, info, stats
from tests.unit.worker.waiting import until


class Sharing:
    """Notes what is shared; takes it while there is somebody to share among."""

    def __init__(self) -> None:
        self.stepped_s = 0.0
        self.engine_source = MODELLED
        self.sources: list[str] = []
        self.shared: list[tuple[int, str]] = []
        self.anybody = True

    def measure(self, meter: str) -> None:
        self.sources.append(meter)

    def share(self, energy_uj: int, source: str) -> bool:
        if self.anybody:
            self.shared.append((energy_uj, source))
        return self.anybody


class World:
    """A worker's engine, clock and source."""

    def __init__(self, source: HeldSource, clock: FakeClock, sharing: Sharing) -> None:
        self.source, self.clock, self.sharing = source, clock, sharing
        self.stats = stats()
        self.meter: PowerMeter

    async def tell(self, after_s: float, standing: EngineStats, *readings: Reading | Exception) -> None:
        """The source answers, `after_s` seconds after the last time."""
        self.clock.advance(after_s)
        self.stats = standing
        asked = len(self.source.read_devices)
        failures = [each for each in readings if isinstance(each, Exception)]
        told = [each for each in readings if isinstance(each, Reading)]
        self.source.readings.put_nowait(failures[0] if failures else told)
        await until(lambda: self.source.closed > 0 or len(self.source.read_devices) > asked, "the next reading")


@asynccontextmanager
async def metered(monkeypatch: pytest.MonkeyPatch, *devices: Device, accelerator: str) -> AsyncIterator[World]:
    source, clock, sharing = HeldSource(*devices), FakeClock(), Sharing()
    world = World(source, clock, sharing)
    monkeypatch.setattr(machine_module, "choose_sources", lambda _: [source])
    machine = await find_machine(WorkerSettings(accelerator=accelerator), {})
    world.meter = PowerMeter(machine, lambda: world.stats, clock, sharing)
    task = asyncio.create_task(world.meter.run(info(), 0.0))
    await until(lambda: bool(source.read_devices) or task.done(), "the first reading")
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with metered(monkeypatch, gpu(), accelerator="nvidia-h100-sxm") as made:
        yield made


JOULE = 1_000_000


async def test_figures_are_the_models_until_the_first_reading_and_measured_from_then_on(world: World) -> None:
    world.stats = stats(power_w=500.0, energy_uj=7 * JOULE)
    figures = world.meter.figures()
    assert (figures.power_w, figures.power_source, figures.energy_uj) == (500.0, MODELLED, 7 * JOULE)
    assert figures.utilisation_source == MODELLED
    await world.tell(1.0, world.stats, Reading(power_w=412.5, utilisation=0.93, energy_uj=50 * JOULE))
    await world.tell(1.0, world.stats, Reading(power_w=612.5, utilisation=0.97, energy_uj=450 * JOULE))
    figures = world.meter.figures()
    assert (figures.power_w, figures.power_source) == (612.5, "nvml")
    assert (figures.utilisation, figures.utilisation_source) == (0.97, "nvml")
    assert figures.energy_uj == 7 * JOULE + 400 * JOULE, "the epoch's count goes on from the model's"
    assert world.meter.source == "nvml"


async def test_energy_while_busy_is_shared_and_idling_is_the_houses(world: World) -> None:
    await world.tell(1.0, stats(), Reading(energy_uj=0))
    world.sharing.stepped_s = 2.0
    await world.tell(1.0, stats(running=1, busy_s=1.0), Reading(energy_uj=600 * JOULE))
    assert world.sharing.sources == ["nvml"]
    assert world.sharing.shared == [(600 * JOULE, "nvml")]
    await world.tell(1.0, stats(busy_s=1.0), Reading(energy_uj=700 * JOULE))
    await world.tell(3.0, stats(busy_s=1.0), Reading(energy_uj=1000 * JOULE))
    assert sum(energy for energy, _ in world.sharing.shared) == 600 * JOULE


async def test_energy_of_a_long_step_waits_until_the_step_ends(world: World) -> None:
    world.sharing.anybody = False
    await world.tell(1.0, stats(), Reading(energy_uj=0))
    await world.tell(1.0, stats(running=1), Reading(energy_uj=500 * JOULE))
    await world.tell(1.0, stats(running=1), Reading(energy_uj=1000 * JOULE))
    world.sharing.anybody, world.sharing.stepped_s = True, 4.0
    await world.tell(1.0, stats(running=1, busy_s=3.0), Reading(energy_uj=1500 * JOULE))
    assert world.sharing.shared == [(1500 * JOULE, "nvml")]


async def test_energy_of_work_that_nobody_is_left_to_pay_for_is_the_houses(world: World) -> None:
    world.sharing.anybody = False
    await world.tell(1.0, stats(), Reading(energy_uj=0))
    await world.tell(1.0, stats(running=1), Reading(energy_uj=500 * JOULE))
    await world.tell(1.0, stats(busy_s=1.0), Reading(energy_uj=600 * JOULE))
    world.sharing.anybody, world.sharing.stepped_s = True, 4.0
    await world.tell(1.0, stats(running=1, busy_s=2.0), Reading(energy_uj=700 * JOULE))
    assert world.sharing.shared == [(100 * JOULE, "nvml")]


async def test_a_counter_alone_gives_watts_too(world: World) -> None:
    await world.tell(1.0, stats(), Reading(energy_uj=0))
    await world.tell(2.0, stats(), Reading(energy_uj=500 * JOULE))
    assert (world.meter.figures().power_w, world.meter.figures().power_source) == (250.0, "nvml")


@pytest.mark.parametrize("failure", [SourceUnavailable("NVML: GPU is lost"), RuntimeError("not foreseen")])
async def test_a_source_that_fails_is_let_go_and_figures_are_the_models_again(
    world: World, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await world.tell(1.0, stats(energy_uj=10 * JOULE), Reading(power_w=600.0, energy_uj=0))
    await world.tell(1.0, stats(energy_uj=15 * JOULE), Reading(power_w=600.0, energy_uj=600 * JOULE))
    with caplog.at_level(logging.WARNING):
        await world.tell(1.0, stats(energy_uj=18 * JOULE, power_w=444.0), failure)
    assert "nvml is not read any more" in caplog.text
    figures = world.meter.figures()
    assert (figures.power_w, figures.power_source, figures.utilisation_source) == (444.0, MODELLED, MODELLED)
    assert figures.energy_uj == (10 + 600) * JOULE
    world.stats = stats(energy_uj=21 * JOULE)
    assert world.meter.figures().energy_uj == (10 + 600 + 3) * JOULE
    assert world.sharing.sources == ["nvml", ""]
    assert world.source.closed == 1


async def test_a_source_without_watts_leaves_them_to_the_model_and_tells_utilisation(world: World) -> None:
    await world.tell(1.0, stats(power_w=444.0), Reading(utilisation=0.6))
    await world.tell(1.0, stats(power_w=444.0), Reading(utilisation=0.7))
    figures = world.meter.figures()
    assert (figures.power_w, figures.power_source) == (444.0, MODELLED)
    assert (figures.utilisation, figures.utilisation_source) == (0.7, "nvml")
    assert world.sharing.shared == []


async def test_several_devices_draw_their_watts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    four = [gpu(index=number) for number in range(4)]
    async with metered(monkeypatch, *four, accelerator="nvidia-h100-sxm-x2") as world:
        assert [each.index for each in world.source.read_devices[0]] == [0, 1]
        each = Reading(power_w=300.0, utilisation=0.5)
        await world.tell(1.0, stats(), each, each)
        await world.tell(1.0, stats(), each, each)
        assert world.meter.figures().power_w == 600.0


async def test_the_end_is_read_and_shared_before_the_source_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with metered(monkeypatch, gpu(), accelerator="nvidia-h100-sxm") as world:
        await world.tell(1.0, stats(), Reading(energy_uj=0))
        world.clock.advance(1.0)
        world.sharing.stepped_s = 2.0
        world.stats = stats(running=1, busy_s=1.0)
    world.source.readings.put_nowait([Reading(energy_uj=300 * JOULE)])
    await world.meter.stop()
    assert world.sharing.shared == [(300 * JOULE, "nvml")]
    assert world.sharing.sources == ["nvml", ""]
    assert world.source.closed == 1


async def test_modelled_utilisation_is_the_busy_part_of_the_last_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async with metered(monkeypatch, accelerator="nvidia-l4") as world:
        seen = []
        for second in range(5):
            world.stats = stats(busy_s=min(second, 2) * 0.8)
            seen.append(round(world.meter.figures().utilisation, 3))
            world.clock.advance(1.0)
    assert seen == [0.0, 0.8, 0.8, 0.0, 0.0]

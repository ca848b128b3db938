"""A worker on a measured accelerator, from the device to the events: what it is, what it draws, whose energy it is.

The accelerator is one that a third party's source tells of, so that no device is needed; the engine is the simulated
one, said to be real.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.mesh.clock import SystemClock
from services.mesh.events import MODELLED, TokensGenerated
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineInfo, OnFailure, OnStep
from services.worker.engines.simulated import SimulatedEngine
from tests.mesh.running_worker import Worker, running_worker
from tests.unit.worker.hardware.acme_power import install_acme_power, show, unplug
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh

JOULE = 1_000_000


class RealEngine(SimulatedEngine):
    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        info = await super().start(on_step, on_failure)
        return replace(info, simulated=False, platform="cuda: NVIDIA L4")


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    install_acme_power(site)
    monkeypatch.syspath_prepend(str(site))
    path = tmp_path / "meter"
    monkeypatch.setenv("ACME_METER", str(path))
    show(path, watts=100.0, joules=0.0)
    return path


@pytest.fixture
async def worker(tmp_path: Path, meter: Path) -> AsyncIterator[Worker]:
    engine = WorkerSettings(accelerator="nvidia-h100-sxm", speed=20.0)
    async with running_worker(
        tmp_path,
        make_engine=lambda: RealEngine(engine, SystemClock()),
        accelerator="auto",
        telemetry_interval_s=0.02,
    ) as running:
        await running.until(lambda: running.beat.power_source == "acme-power", "watts are measured")
        yield running


def energy_uj(worker: Worker, source: str) -> int:
    events: list[TokensGenerated] = worker.of_kind(TokensGenerated)
    return sum(entry.energy_uj for event in events if event.energy_source == source for entry in event.entries)


async def test_an_accelerator_that_is_detected_is_said_to_be_with_who_told(worker: Worker) -> None:
    description = await worker.stub.Describe(pb.DescribeRequest(), timeout=5)
    assert (description.accelerator, description.detected_by) == ("nvidia-h100-sxm", "acme-power")
    assert (description.telemetry, description.vendor) == ("acme-power", "NVIDIA")
    beat = worker.beat
    assert (beat.accelerator, beat.rate_nusd_per_hour, beat.power_w) == ("nvidia-h100-sxm", 2_690_000_000, 100.0)
    assert (beat.utilisation, beat.utilisation_source) == (0.5, "acme-power")


async def test_requests_get_the_energy_that_was_measured_and_no_other(worker: Worker, meter: Path) -> None:
    session = await worker.session()
    _, stream = await session.open("r", max_tokens=400, ignore_eos=True)
    await worker.until(lambda: len(stream.token_ids) > 10, "it generates")
    show(meter, watts=612.0, joules=90.0)
    await worker.until(lambda: worker.beat.power_w == 612.0, "the new watts are told")
    await stream.end()
    await worker.reported("r")
    measured_uj = energy_uj(worker, "acme-power")
    assert 0 < measured_uj <= 90 * JOULE
    assert energy_uj(worker, MODELLED) == 0
    assert sum(entry.count for entry in worker.entries) == 400, "each token once, whenever its energy was known"


async def test_a_meter_that_fails_in_mid_stream_loses_no_token_and_the_model_takes_over(
    worker: Worker, meter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = await worker.session()
    _, stream = await session.open("r", max_tokens=400, ignore_eos=True)
    await worker.until(lambda: len(stream.token_ids) > 10, "it generates")
    unplug(meter)
    await worker.until(lambda: worker.beat.power_source == MODELLED, "watts are modelled again")
    assert "acme-power is not read any more" in caplog.text
    await stream.end()
    await worker.reported("r")
    assert energy_uj(worker, MODELLED) > 0
    assert sum(entry.count for entry in worker.entries) == 400
    description = await worker.stub.Describe(pb.DescribeRequest(), timeout=5)
    assert (description.detected_by, description.telemetry) == ("acme-power", MODELLED)


async def test_an_engine_that_says_it_runs_on_another_device_is_logged_by_name(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    assert worker.beat.simulated is False
    assert "the engine says that it runs on 'cuda: NVIDIA L4', but acme-power tells of nvidia-h100-sxm" in "".join(
        record.getMessage() for record in caplog.get_records("setup")
    )


@pytest.mark.usefixtures("meter")
async def test_a_simulated_worker_measures_nothing(tmp_path: Path) -> None:
    async with running_worker(tmp_path, accelerator="nvidia-h100-sxm") as running:
        session = await running.session()
        await session.answer("r", max_tokens=20, ignore_eos=True)
        await running.reported("r")
        assert running.beat.power_source == MODELLED
        assert energy_uj(running, MODELLED) > 0

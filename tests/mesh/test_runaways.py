"""What runs away is found, said and held back in a mesh that runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.mesh.clock import SystemClock
from services.mesh.events import RunawayFound, RunawayGrade
from services.mesh.settings import RunawaySettings, WorkerSettings
from services.worker.engine import EngineInfo, OnFailure, OnStep, SequenceOutput, StepOutput
from services.worker.engines.simulated import SimulatedEngine
from tests.mesh.local_mesh import MODEL, LocalMesh, eventually, simulated
from tests.mesh.running_worker import running_worker
from tests.unit.router.test_restraints import FOUND
from tokenworks import CallError
from tokenworks.v1 import metering_pb2, metering_pb2_grpc

pytestmark = pytest.mark.mesh

PIECE = (11, 12, 13)


class CirclingEngine(SimulatedEngine):
    """Says the same three tokens for ever."""

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        said: dict[int, int] = {}

        def circling(steps: Sequence[StepOutput]) -> None:
            on_step([replace(step, outputs=tuple(map(circle, step.outputs))) for step in steps])

        def circle(output: SequenceOutput) -> SequenceOutput:
            at = said.get(output.sequence, 0)
            said[output.sequence] = at + output.token_count
            return replace(output, token_ids=tuple(PIECE[(at + index) % 3] for index in range(output.token_count)))

        return await super().start(circling, on_failure)


async def _circle(folder: Path, runaway: RunawaySettings, max_tokens: int) -> tuple[str, int, list[RunawayFound]]:
    def make() -> CirclingEngine:
        return CirclingEngine(WorkerSettings(speed=20.0), SystemClock())

    async with running_worker(folder, make_engine=make, runaway=runaway) as worker:
        session = await worker.session()
        received = await session.answer("r-1", max_tokens=max_tokens, seed=1)
        assert received.finish is not None
        await worker.until(lambda: bool(worker.of_kind(RunawayFound)), "it is said")
        await worker.reported("r-1")
        return received.finish.reason, len(received.token_ids), worker.of_kind(RunawayFound)


async def test_an_answer_in_circles_is_ended_where_that_is_allowed(tmp_path: Path) -> None:
    reason, tokens, found = await _circle(tmp_path, RunawaySettings(most=RunawayGrade.STOP), 4000)
    assert reason == "runaway"
    assert tokens < 600
    assert [(each.scope, each.name, each.kind, each.grade) for each in found] == [
        ("request", "r-1", "repetition", "notify"),
        ("request", "r-1", "repetition", "stop"),
    ]
    assert "repeats its last 3 tokens" in found[-1].evidence


async def test_a_dry_run_says_what_it_would_have_ended(tmp_path: Path) -> None:
    reason, _, found = await _circle(tmp_path, RunawaySettings(most=RunawayGrade.STOP, dry_run=True), 700)
    assert reason != "runaway"
    assert [(each.grade, each.dry_run) for each in found] == [("notify", True), ("stop", True)]


async def test_running_streams_of_what_is_stopped_end_as_runaways_and_others_go_on(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=0.2) as worker:
        session = await worker.session()
        _, stopped = await session.open("r-1", workload="support", max_tokens=2000, ignore_eos=True)
        _, other = await session.open("r-2", workload="chat", max_tokens=20, ignore_eos=True)
        await worker.until(lambda: bool(stopped.token_ids), "it runs")
        worker.bus.publish(FOUND)
        assert (await stopped.end()).finish is not None
        assert (await other.end()).finish is not None
        assert stopped.finish is not None
        assert other.finish is not None
        assert (stopped.finish.reason, other.finish.reason) == ("runaway", "length")


async def test_an_endless_agent_is_slowed_listed_with_its_evidence_and_let_go_by_its_operator(tmp_path: Path) -> None:
    mesh = LocalMesh(tmp_path)
    runaway = RunawaySettings(most=RunawayGrade.SLOW, bucket_s=0.1, agent_turns=4, agent_gap_s=60.0)
    try:
        await mesh.start([simulated("h100-0", speed=20.0)], runaway=runaway)
        client = mesh.client()
        prompt = "Plan the next step. "

        async def refused() -> bool:
            nonlocal prompt
            prompt += "And then? "
            try:
                async for _ in client.generate(text=prompt, model=MODEL, session_id="agent-7", max_tokens=1):
                    pass
            except CallError as error:
                return "endless_agent" in str(error)
            return False

        await eventually(refused, "the agent is slowed")
        async for _ in client.generate(text=prompt, model=MODEL, session_id="person", max_tokens=1):
            pass
        stub = metering_pb2_grpc.MeterStub(mesh.channel("meter"))
        listed = await stub.ListRunaways(metering_pb2.ListRunawaysRequest(), timeout=10.0)
        (found,) = listed.found
        assert (found.scope, found.name, found.kind, found.grade) == ("session", "agent-7", "endless_agent", "slow")
        lift = metering_pb2.LiftRunawayRequest(tenant="local", scope="session", name="agent-7")
        assert not (await stub.LiftRunaway(lift, timeout=10.0)).found

        async def let_in() -> bool:
            return not await refused()

        await eventually(let_in, "the agent is let in again")
    finally:
        await mesh.stop()

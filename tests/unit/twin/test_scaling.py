"""Targets in virtual time: workers come when they are needed, go when they are not, and nobody's answer breaks."""

from dataclasses import replace

import pytest

from services.mesh.accelerators import load_catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.events import ReplicaTarget, WorkerState
from services.mesh.settings import ElasticPool
from services.twin.report import report
from services.twin.run import simulate
from services.twin.scaling import Scaling
from services.twin.scenario import Fleet, Scenario, usual_classes
from services.twin.timeline import Timeline
from services.twin.traces import TraceRequest
from services.twin.worker import Job, TwinWorker
from services.worker.core.batching import BatchLimits

CATALOGUE = load_catalogue()
MODEL = "llama-3.1-8b"
L4 = "nvidia-l4"
POOL = ElasticPool(pool=L4, accelerator=L4, least=1, most=5, cold_start_s=15.0)
SCENARIO = Scenario(
    fleet=Fleet.parse(L4, CATALOGUE), model=MODEL, classes=usual_classes(interactive=0, standard=1, batch=0)
)


def _surge() -> list[TraceRequest]:
    """Little, then much for a while, then little again."""
    gaps_s = [2.0] * 4 + [0.25] * 100 + [3.0] * 40
    at_s, made = 0.0, []
    for gap_s in gaps_s:
        at_s += gap_s
        made.append(TraceRequest(arrival_s=at_s, prompt_tokens=400, completion_tokens=80))
    return made


def test_workers_join_for_a_surge_and_leave_after_it_without_breaking_an_answer() -> None:
    outcome = simulate(replace(SCENARIO, elastic=(POOL,)), CATALOGUE, _surge(), "tokenworks")
    came_of = report(outcome)
    assert {each.outcome for each in outcome.requests} <= {"length", "refused"}
    assert came_of.resumed == 0
    assert came_of.by_pool[L4].workers == 5
    assert 1.0 < came_of.by_pool[L4].mean_workers < 5.0
    joined = [each for each in outcome.workers[1:] if each.totals.tokens]
    assert joined, "some made tokens"
    assert any(each.state is WorkerState.FAILED for each in outcome.workers if each.totals.tokens), "some left again"


def test_only_a_policy_that_plans_says_how_many_workers_there_should_be() -> None:
    with pytest.raises(SettingInvalid, match="least-requests"):
        simulate(replace(SCENARIO, elastic=(POOL,)), CATALOGUE, _surge(), "least-requests")


class _Sender:
    """Whoever sent the jobs."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def first_token(self, worker: TwinWorker, job: Job) -> None: ...

    def ended(self, worker: TwinWorker, job: Job) -> None:
        self.done.append(job.id)

    def broken(self, worker: TwinWorker, job: Job) -> None:
        raise AssertionError(f"job {job.id} broke off")


def test_a_worker_serves_after_its_cold_start_and_drains_before_it_is_gone() -> None:
    timeline, sender = Timeline(), _Sender()
    device = CATALOGUE.accelerator(L4)
    timing = CATALOGUE.timing(device, CATALOGUE.model(MODEL))
    limits = BatchLimits(max_batch=8, max_waiting=8, prefill_chunk_tokens=512, kv_blocks=1000)
    workers = [
        TwinWorker(
            f"w{rank}",
            device,
            MODEL,
            timing,
            limits,
            context_tokens=4096,
            timeline=timeline,
            listener=sender,
            rank=rank,
        )
        for rank in range(2)
    ]
    first, second = workers
    second.fail()
    told: list[tuple[float, str, str]] = []
    scaling = Scaling(timeline, workers, (POOL,), lambda each: told.append((timeline.now_s, each.name, each.state)))

    def wants(replicas: int) -> None:
        scaling.carry_out(
            [
                ReplicaTarget(
                    pool=L4, accelerator=L4, replicas=replicas, ready=1, forecast_rps=1.0, cold_start_s=15.0, because=""
                )
            ]
        )

    wants(2)
    timeline.at(4.0, lambda: wants(1))  # not needed any more
    timeline.at(5.0, lambda: wants(2))  # and yet: from here its cold start takes 15 s
    timeline.at(21.0, lambda: first.submit(Job(1, 100, 50, 0)))
    timeline.at(21.0, lambda: second.submit(Job(2, 100, 10, 0)))
    timeline.at(21.01, lambda: wants(0))
    timeline.run()
    assert told[:4] == [(0.0, "w1", "starting"), (4.0, "w1", "failed"), (5.0, "w1", "starting"), (20.0, "w1", "ready")]
    assert {(name, state) for at_s, name, state in told[4:]} == {("w0", "draining"), ("w1", "draining")}
    assert sender.done == [2, 1]
    assert [each.state for each in workers] == ["failed", "failed"]
    assert not first.submit(Job(3, 10, 10, 0))
    second.finish()
    assert second.totals.up_s < 22.0  # paid for while it started, served and drained, and no longer

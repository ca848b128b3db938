"""The optimizer's gRPC: the plan in force, each that replaces it, and what it would be if.

An operator's view: with `mesh.secret` set, callers must know it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc

from services.mesh.clock import Clock
from services.mesh.codec import to_message
from services.mesh.errors import InvalidRequest, QueueFull, UnknownModel
from services.mesh.events import PlanLimit, RoutingPlan
from services.mesh.rpc import require_mesh_secret
from services.optimizer.board import PlanBoard
from services.optimizer.core.beliefs import Beliefs, Snapshot, Trigger
from services.optimizer.core.draft import draft, evidence_of, workload_class
from services.optimizer.core.plan import Solution, solve
from services.optimizer.core.what_if import PoolChange, changed
from services.optimizer.core.why import ClassReason, PoolReason, why
from tokenworks.v1 import planning_pb2, planning_pb2_grpc

SERVICE_NAME: Final = "tokenworks.v1.Optimizer"
_MAX_QUESTIONS: Final = 8  # solved or waiting at a time
_MAX_CHANGES: Final = 1000
_USUAL_DECISIONS: Final = 60
_MOST_DECISIONS: Final = 3600

Context = grpc.aio.ServicerContext[Any, Any]


class OptimizerService(planning_pb2_grpc.OptimizerServicer):
    """Answers from the board; a question is solved in a thread, beside the loop, and changes nothing."""

    def __init__(self, board: PlanBoard, beliefs: Beliefs, clock: Clock, secrets: Sequence[str]) -> None:
        self._board = board
        self._beliefs = beliefs
        self._clock = clock
        self._secrets = secrets
        self._questions = 0
        self._solving = asyncio.Lock()

    async def GetPlan(self, request: planning_pb2.GetPlanRequest, context: Context) -> planning_pb2.RoutingPlan:
        """Raises UnknownModel, InvalidRequest, Unauthenticated."""
        require_mesh_secret(context, self._secrets)
        return _message(self._board.plan(_model(request.model)))

    async def WatchPlan(
        self, request: planning_pb2.GetPlanRequest, context: Context
    ) -> AsyncIterator[planning_pb2.RoutingPlan]:
        """Raises UnknownModel, InvalidRequest, QueueFull, Unauthenticated."""
        require_mesh_secret(context, self._secrets)
        async with aclosing(self._board.watch(_model(request.model))) as plans:
            async for plan in plans:
                yield _message(plan)

    async def WhatIf(self, request: planning_pb2.WhatIfRequest, context: Context) -> planning_pb2.WhatIfResponse:
        """Both plans are the program's answer to the same beliefs, undamped, so that their difference is the change's.

        Raises UnknownModel, InvalidRequest, QueueFull, Unauthenticated.
        """
        require_mesh_secret(context, self._secrets)
        model = _model(request.model)
        if len(request.pools) > _MAX_CHANGES:
            raise InvalidRequest(f"{len(request.pools)} pools are changed; at most {_MAX_CHANGES} can be")
        now = self._snapshot(model)
        changes = [
            PoolChange(each.pool, each.add_workers, 1.0 if each.rate_factor == 0 else each.rate_factor)
            for each in request.pools
        ]
        then = changed(now, model, 1.0 if request.demand_factor == 0 else request.demand_factor, changes)
        made_unix_ms = self._clock.unix_ms()
        plans = [_undamped(each, solution, model, made_unix_ms) for each, solution in await self._solve(now, then)]
        return planning_pb2.WhatIfResponse(now=_message(plans[0]), then=_message(plans[1]))

    async def Why(self, request: planning_pb2.WhyRequest, context: Context) -> planning_pb2.PoolReason:
        """From the program's answer to what is believed now, undamped.

        Raises UnknownModel, InvalidRequest, QueueFull, Unauthenticated.
        """
        require_mesh_secret(context, self._secrets)
        model = _model(request.model)
        snapshot = self._snapshot(model)
        ((_, solution),) = await self._solve(snapshot)
        return _reason_message(snapshot, model, why(snapshot, solution, model, request.pool))

    async def ListDecisions(
        self, request: planning_pb2.ListDecisionsRequest, context: Context
    ) -> planning_pb2.ListDecisionsResponse:
        """Raises InvalidRequest, UnknownModel, Unauthenticated."""
        require_mesh_secret(context, self._secrets)
        model = _model(request.model)
        self._board.plan(model)
        if request.most > _MOST_DECISIONS:
            raise InvalidRequest(f"most = {request.most}; at most {_MOST_DECISIONS} decisions are kept")
        found = self._beliefs.decisions.latest(model, request.most or _USUAL_DECISIONS)
        return planning_pb2.ListDecisionsResponse(
            decisions=[
                planning_pb2.Decision(
                    plan=f"{each.model}:{each.version}",
                    made_unix_ms=each.made_unix_ms,
                    trigger=each.trigger,
                    status=each.status,
                    demand_rps=each.demand_rps,
                    unserved_rps=each.unserved_rps,
                    predicted_usd_per_request=each.predicted_usd_per_request,
                    realised_usd_per_request=each.realised_usd_per_request,
                    requests=each.requests,
                    finished_requests=each.finished,
                    slo_met_requests=each.slo_met,
                    canary_share=each.canary_share,
                    fate=each.fate,
                    because=each.because,
                )
                for each in found
            ]
        )

    def _snapshot(self, model: str) -> Snapshot:
        """What is believed now. Raises UnknownModel."""
        now = self._beliefs.snapshot(self._clock.monotonic_s())
        if model not in now.models:
            known = ", ".join(now.models) or "none: no worker was heard yet"
            raise UnknownModel(f"model {model!r} is not known; models that are: {known}")
        return now

    async def _solve(self, *snapshots: Snapshot) -> list[tuple[Snapshot, Solution]]:
        """Each with the program's answer. Raises QueueFull."""
        if self._questions >= _MAX_QUESTIONS:
            raise QueueFull(f"{_MAX_QUESTIONS} questions are being solved already", retry_after_s=0.5)
        self._questions += 1
        try:
            async with self._solving:
                return [(each, await asyncio.to_thread(solve, each.problem, {})) for each in snapshots]
        finally:
            self._questions -= 1


def _message(plan: RoutingPlan) -> planning_pb2.RoutingPlan:
    message = to_message(plan)
    assert isinstance(message, planning_pb2.RoutingPlan)
    return message


def _model(model: str) -> str:
    if not model:
        raise InvalidRequest("model is empty; name the model whose plan is meant")
    return model


def _undamped(snapshot: Snapshot, solution: Solution, model: str, made_unix_ms: int) -> RoutingPlan:
    """The program's own answer; version 0: it is never in force."""
    return draft(
        snapshot,
        solution,
        solution.shares,
        solution.shadow_usd_per_device_s,
        model=model,
        version=0,
        made_unix_ms=made_unix_ms,
        trigger=Trigger.WHAT_IF,
        solve_s=0.0,
    )


def _reason_message(snapshot: Snapshot, model: str, reason: PoolReason) -> planning_pb2.PoolReason:
    evidence = to_message(evidence_of(snapshot, model, Trigger.WHAT_IF))
    assert isinstance(evidence, planning_pb2.Evidence)
    return planning_pb2.PoolReason(
        pool=reason.pool.name,
        accelerator=reason.pool.accelerator,
        workers=reason.pool.workers,
        status=reason.status,
        rate_usd_per_hour=reason.pool.rate_usd_per_hour,
        utilisation=reason.utilisation,
        shadow_usd_per_device_s=reason.shadow_usd_per_device_s,
        binding=reason.binding,
        saving_usd_per_hour=reason.saving_usd_per_hour,
        classes=[_class_message(each) for each in reason.classes],
        evidence=evidence,
        limits=[_limit_message(each) for each in reason.limits],
    )


def _limit_message(limit: PlanLimit) -> planning_pb2.PlanLimit:
    message = to_message(limit)
    assert isinstance(message, planning_pb2.PlanLimit)
    return message


def _class_message(reason: ClassReason) -> planning_pb2.ClassReason:
    named = to_message(workload_class(reason.demand))
    assert isinstance(named, planning_pb2.WorkloadClass)
    return planning_pb2.ClassReason(
        workload_class=named,
        share=reason.share,
        because=reason.because,
        usd_per_request=reason.usd,
        told_usd_per_request=reason.told_usd,
        best_pool=reason.best_pool,
        best_told_usd_per_request=reason.best_told_usd,
        breakeven_usd_per_hour=reason.breakeven_usd_per_hour,
        batch=reason.service.batch,
        ttft_s=reason.service.ttft_s,
        tpot_s=reason.service.tpot_s,
    )

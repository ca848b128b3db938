"""Carries a schedule out: each fault at its time, for its time, and then mended.

In: the schedule and the ground. Out: the mesh, broken; and what was done, with the times at which it was. A fault waits
until its target is back from the one before, and until enough others stand that the mesh can keep its promises at all:
half of the workers, one router where there are several, most of a bus's cluster. Whatever happens, everything is mended
at the end.
"""

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from services.chaos.beats import Beats
from services.chaos.core.faults import Fault, FaultKind, Role
from services.chaos.core.figures import Done
from services.chaos.ground import Ground
from services.chaos.nats_operator import NatsOperator
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.rpc import MESH_SECRET
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

_POLL_S: Final = 0.05
_BACK_WITHIN_S: Final = 60.0
_CALL_S: Final = 5.0
_FORGETFUL_S: Final = 0.1
_DRAIN_GRACE_S: Final = 3.0
_COUNTED: Final = ("TW_TOKENS", "TW_REQUESTS")  # streams of what is booked
_SIGNALS: Final = {FaultKind.KILL: signal.SIGKILL, FaultKind.FREEZE: signal.SIGSTOP, FaultKind.DRAIN: signal.SIGTERM}
_WITHIN: Final = {
    FaultKind.CRASH: pb.InjectFaultRequest.KIND_CRASH,
    FaultKind.SLOW: pb.InjectFaultRequest.KIND_SLOW,
    FaultKind.HANG: pb.InjectFaultRequest.KIND_HANG,
    FaultKind.ENGINE_DIES: pb.InjectFaultRequest.KIND_ENGINE_DIES,
}
_OF_WORKERS: Final = (Role.WORKER, Role.WORKER_LINK, Role.CABLE)


class NeverBack(Exception):
    """What was broken and mended does not serve again."""


class Injector:
    """Use `run` once.

    Attributes:
        done: in the order in which targets came back.
    """

    def __init__(self, ground: Ground, beats: Beats, clock: Clock, on_fault: Callable[[Fault], None]) -> None:
        self.done: list[Done] = []
        self._ground = ground
        self._beats = beats
        self._clock = clock
        self._on_fault = on_fault
        self._broken: set[tuple[Role, str]] = set()
        self._names = {
            role: tuple(target.name for target in ground.targets if target.role is role)
            for role in (Role.WORKER, Role.ROUTER, Role.BUS)
        }

    async def run(self, faults: Sequence[Fault], began_s: float) -> None:
        """Carries all of them out. Raises NeverBack, in a group: the mesh does not recover from one."""
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, began_s + fault.at_s - self._clock.monotonic_s()))
                await self._until_it_may(fault)
                self._broken.add((fault.role, fault.target))
                tasks.create_task(self._one(fault, began_s), name=f"fault {fault.number}")

    async def until_all_serve(self, within_s: float = _BACK_WITHIN_S) -> None:
        """Waits until every service serves. Raises NeverBack: one does not in time."""
        services = {target.name for target in self._ground.targets if target.role is not Role.BUS}
        for service in sorted(services):
            await self._until_back(service, within_s)

    async def _one(self, fault: Fault, began_s: float) -> None:
        at_s = self._clock.monotonic_s()
        self._on_fault(fault)
        failed = ""
        try:
            try:
                await self._break(fault)
                await asyncio.sleep(fault.lasts_s)
            finally:
                await self._mend(fault)
        except (OSError, BusUnavailable, grpc.aio.AioRpcError) as error:
            failed = error.details() or str(error) if isinstance(error, grpc.aio.AioRpcError) else str(error)
            log.warning("fault %d (%s) could not be carried out: %s", fault.number, fault.words, failed)
        await self._until_back(fault.target, _BACK_WITHIN_S)
        self._broken.discard((fault.role, fault.target))
        now_s = self._clock.monotonic_s()
        self.done.append(Done(fault, at_s - began_s, now_s - at_s, failed))

    async def _break(self, fault: Fault) -> None:
        ground, kind = self._ground, fault.kind
        if kind in _SIGNALS:
            await self._signal(fault)
        elif kind in _WITHIN:
            await self._inject(fault.target, _WITHIN[kind], fault.factor)
        elif kind is FaultKind.CUT:
            ground.link(fault.role, fault.target).cut()
        elif kind is FaultKind.UNPLUG:
            await asyncio.to_thread(ground.cable(fault.target).unplug)
        elif kind is FaultKind.SEVER:
            await ground.link(fault.role, fault.target).sever()
        elif kind is FaultKind.DELAY:
            ground.link(fault.role, fault.target).delay(fault.factor)
        elif kind is FaultKind.DISK_FULL:
            _, most = resource.prlimit(self._pid(fault), resource.RLIMIT_FSIZE)
            resource.prlimit(self._pid(fault), resource.RLIMIT_FSIZE, (1, most))
        else:
            await self._repeat(round(fault.factor))

    async def _signal(self, fault: Fault) -> None:
        pid = self._ground.pid(fault.target)
        if pid is None and fault.kind is FaultKind.DRAIN and fault.role is Role.WORKER:
            epoch = self._beats.epoch(fault.target)
            answered = await self._beats.drain(fault.target, _DRAIN_GRACE_S)
            if not answered.accepted:
                raise OSError(f"{fault.target} does not drain: {answered.message}")
            await self._until(lambda: self._beats.epoch(fault.target) != epoch, f"{fault.target} has not drained")
            return
        pid = self._pid(fault)
        os.kill(pid, _SIGNALS[fault.kind])
        if fault.kind is not FaultKind.FREEZE:
            # It is gone first, so that it is not taken for the one that comes after it.
            await self._until(lambda: self._ground.pid(fault.target) != pid, f"{fault.target} does not end")

    async def _mend(self, fault: Fault) -> None:
        kind, pid = fault.kind, self._ground.pid(fault.target)
        if kind is FaultKind.FREEZE and pid is not None:
            os.kill(pid, signal.SIGCONT)
        elif kind in (FaultKind.SLOW, FaultKind.HANG):
            await self._inject(fault.target, pb.InjectFaultRequest.KIND_NONE, 0.0)
        elif kind in (FaultKind.CUT, FaultKind.SEVER, FaultKind.DELAY):
            await self._ground.link(fault.role, fault.target).mend()
        elif kind is FaultKind.UNPLUG:
            await asyncio.to_thread(self._ground.cable(fault.target).plug_in)
        elif kind is FaultKind.DISK_FULL and pid is not None:
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))

    async def _inject(self, worker: str, kind: Any, factor: float) -> None:
        metadata = ((MESH_SECRET, self._ground.secret),) if self._ground.secret else ()
        async with grpc.aio.insecure_channel(self._beats.address(worker)) as channel:
            stub: Any = pb_grpc.FaultControlStub(channel)  # type: ignore[no-untyped-call]  # generated
            request = pb.InjectFaultRequest(kind=kind, factor=factor)
            try:
                await stub.InjectFault(request, timeout=_CALL_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                # A worker that crashes as it is told to answers nothing.
                if kind != pb.InjectFaultRequest.KIND_CRASH or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    async def _repeat(self, count: int) -> None:
        """Stores the last messages of the streams that count once more, as they are: delivered twice, and late."""
        async with NatsOperator(self._ground.nats) as nats:
            for stream in _COUNTED:
                # The server drops what it knows the id of, and the guarantee must not rest on that.
                usual_s = await nats.forget_ids_after(stream, _FORGETFUL_S)
                try:
                    await asyncio.sleep(2 * _FORGETFUL_S)
                    first, last = await nats.bounds(stream)
                    for sequence in range(max(first, last - count + 1), last + 1):
                        await nats.store(await nats.stored(stream, sequence))
                finally:
                    await nats.forget_ids_after(stream, usual_s)

    async def _until_it_may(self, fault: Fault) -> None:
        """Waits until the target serves and enough others do."""
        ends_s = self._clock.monotonic_s() + _BACK_WITHIN_S
        while not await self._may(fault):
            if self._clock.monotonic_s() > ends_s:
                raise NeverBack(f"before fault {fault.number} ({fault.words}): too little of the mesh serves")
            await asyncio.sleep(_POLL_S)

    async def _may(self, fault: Fault) -> bool:
        broken = {name for _, name in self._broken}
        if fault.target in broken or not await self._ground.ready(fault.target):
            return False
        if fault.role in _OF_WORKERS:
            hurt = {name for role, name in self._broken if role in _OF_WORKERS} | {fault.target}
            standing = [name for name in self._beats.live() if name not in hurt]
            return len(standing) >= max(1, len(self._names[Role.WORKER]) // 2)
        alike = [name for name in self._names.get(fault.role, ()) if name != fault.target]
        standing_too = [await self._ground.ready(name) for name in alike if name not in broken]
        if fault.role is Role.BUS:  # a cluster goes on while more than half of it stands
            return sum(standing_too) >= (len(alike) + 1) // 2
        return any(standing_too) or not alike

    async def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        """Raises NeverBack: it does not hold in time."""
        ends_s = self._clock.monotonic_s() + _BACK_WITHIN_S
        while not holds():
            if self._clock.monotonic_s() > ends_s:
                raise NeverBack(f"{otherwise} within {_BACK_WITHIN_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def _until_back(self, service: str, within_s: float) -> None:
        ends_s = self._clock.monotonic_s() + within_s
        while not await self._serves(service):
            if self._clock.monotonic_s() > ends_s:
                raise NeverBack(f"{service} does not serve {within_s:g} s after it was mended")
            await asyncio.sleep(_POLL_S)

    async def _serves(self, service: str) -> bool:
        if service in self._names[Role.WORKER] and service not in self._beats.live():
            return False
        return await self._ground.ready(service)

    def _pid(self, fault: Fault) -> int:
        pid = self._ground.pid(fault.target)
        if pid is None:
            raise OSError(f"{fault.target} does not run")
        return pid

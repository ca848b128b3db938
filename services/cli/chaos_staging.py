"""A mesh that runs already, for `tokenworks chaos --attach`: only what is reached from here can be broken.

In: an `Access`, and the processes that the user names. Out: a `Ground`: workers drain when they are told to, are slow
or stand still where `worker.faults` lets them be broken, and processes named by pid are killed and frozen. Whatever
looks after the processes there has to start again what ends; links and the bus are left alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from services.chaos.beats import Beats
from services.chaos.cables import Cable
from services.chaos.core.faults import OF_ENGINES, OF_PROCESSES, FaultKind, Role, Target
from services.chaos.links import Link
from services.cli.access import Access
from services.cli.output import CommandFailed
from services.cli.readiness import probe
from services.mesh.rpc import MESH_SECRET
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

_CALL_S: Final = 5.0
_ROLES: Final = (Role.ROUTER, Role.METER, Role.OPTIMIZER)


class Pids:
    """Processes that the user named: `NAME=PID`, or `NAME=@FILE` with the pid, read anew each time.

    Raises:
        CommandFailed: one is not of this form.
    """

    def __init__(self, named: Sequence[str]) -> None:
        self._said: dict[str, str] = {}
        for each in named:
            name, _, said = each.partition("=")
            if not name or not (said.isdigit() or said.startswith("@")):
                raise CommandFailed(f"--pid {each!r}: give NAME=PID or NAME=@FILE", reason="InvalidRequest")
            self._said[name] = said

    def __iter__(self) -> "Any":
        return iter(self._said)

    def of(self, name: str) -> int | None:
        """None when no process of that name was named, or it does not run."""
        said = self._said.get(name, "")
        try:
            pid = int(Path(said[1:]).read_text(encoding="ascii")) if said.startswith("@") else int(said or 0)
        except (OSError, ValueError):
            return None
        return pid if pid > 0 and Path(f"/proc/{pid}").exists() else None


class StagingMesh:
    """Made by `attached`; a `Ground`."""

    def __init__(
        self,
        access: Access,
        beats: Beats,
        *,
        keys: Mapping[str, str],
        model: str,
        targets: Sequence[Target],
        skipped: Sequence[str],
        pids: Pids,
    ) -> None:
        self.targets = targets
        self.skipped = skipped
        self.routers: Sequence[str] = access.router.split(",")
        self.keys = keys
        self.secret = access.secret
        self.nats = access.nats
        self.model = model
        self.http = access.http
        self._beats = beats
        self._pids = pids

    def pid(self, service: str) -> int | None:
        return self._pids.of(service)

    def link(self, role: Role, service: str) -> Link:
        raise AssertionError(f"no fault of a {role} is among the targets, not even of {service}")

    def cable(self, service: str) -> Cable:
        raise AssertionError(f"no cable is among the targets, not even to {service}")

    async def ready(self, service: str) -> bool:
        if service in self.http:
            return await probe(self.http[service]) == "ready"
        return service in self._beats.live()


async def attached(access: Access, beats: Beats, *, keys: Mapping[str, str], model: str, pids: Pids) -> StagingMesh:
    """Finds out what can be broken.

    Args:
        beats: has been listening for a second or more.

    Raises:
        CommandFailed: no worker is heard, or a named process is nobody's.
    """
    workers = sorted(beats.live())
    if not workers:
        raise CommandFailed(f"no worker is heard at {access.nats}; is the mesh up?", reason="NoWorker")
    targets, skipped = [], ["links and the bus: they are not between processes that this command started"]
    for worker in workers:
        kinds: tuple[FaultKind, ...] = (FaultKind.DRAIN,)
        if pids.of(worker) is not None:
            kinds = OF_PROCESSES
        if refusal := await _refuses_faults(beats.address(worker), access.secret):
            skipped.append(f"{worker} slow, hanging or crashing: {refusal}")
        else:
            kinds += OF_ENGINES
        targets.append(Target(worker, Role.WORKER, kinds))
    for name in pids:
        if name in workers:
            continue
        role = next((role for role in _ROLES if name.startswith(role)), None)
        if role is None:
            raise CommandFailed(
                f"--pid {name}: no worker of that name is heard, and it is not called router…, meter… or optimizer…",
                reason="InvalidRequest",
            )
        targets.append(Target(name, role, OF_PROCESSES))
    return StagingMesh(access, beats, keys=keys, model=model, targets=targets, skipped=skipped, pids=pids)


async def _refuses_faults(address: str, secret: str) -> str:
    """Why a worker does not let itself be broken; empty when it does."""
    metadata = ((MESH_SECRET, secret),) if secret else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.FaultControlStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            mend = pb.InjectFaultRequest(kind=pb.InjectFaultRequest.KIND_NONE)
            await stub.InjectFault(mend, timeout=_CALL_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return "worker.faults is not set there"
            return error.details() or error.code().name
    return ""

"""What chaos needs of the mesh that it breaks, and of whoever keeps that mesh's books.

`Ground` is the mesh: who can be broken and how, where everything is reached, which processes are whose. `Books` is its
meter. The command line has two of the first: a mesh of its own, in processes of this machine, and one that runs already
elsewhere, of which only what is reached over the network can be broken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.chaos.cables import Cable
from services.chaos.core.faults import Role, Target
from services.chaos.core.verdict import Audited, Bill
from services.chaos.links import Link


class Ground(Protocol):
    """A running mesh.

    Attributes:
        targets: what can be broken.
        skipped: what cannot be broken here, and why, in words.
        routers: addresses, `host:port`.
        keys: tenant -> key.
        secret: the mesh's; empty where it has none.
        nats: URL, of several servers comma-separated; not by way of a link.
        model: that is asked.
        http: service -> `host:port` of its `/metrics`.
    """

    targets: Sequence[Target]
    skipped: Sequence[str]
    routers: Sequence[str]
    keys: Mapping[str, str]
    secret: str
    nats: str
    model: str
    http: Mapping[str, str]

    def pid(self, service: str) -> int | None:
        """Of its process; None when it does not run, or not here."""
        ...

    def link(self, role: Role, service: str) -> Link:
        """The link of that role to the service."""
        ...

    def cable(self, service: str) -> Cable:
        """That leads to the service's host, where that is a target."""
        ...

    async def ready(self, service: str) -> bool:
        """Whether the service serves."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one tenant, nano-dollars; `limit_nusd` is 0 where there is none."""

    limit_nusd: int
    spent_nusd: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Books made again from the streams; `differences` to the live ones, None where those cannot be read from here."""

    events: int
    differences: Sequence[str] | None


class Books(Protocol):
    """A mesh's meter. All raise `CallError` where it does not answer."""

    async def audited(self) -> Audited:
        """What its reconciler says."""
        ...

    async def bill(self, request_id: str) -> Bill | None:
        """What is booked of a request; None when nothing is."""
        ...

    async def budget(self, tenant: str) -> Budget: ...

    async def set_budget(self, tenant: str, limit_nusd: int) -> None: ...

    async def rebuilt(self) -> Rebuilt:
        """Raises RuntimeError: the rebuild itself failed."""
        ...

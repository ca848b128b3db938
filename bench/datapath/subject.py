"""What is measured: a router that can be started in front of two backends, and the plain backend as the yardstick."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from bench.datapath.http_backend import MODEL
from bench.datapath.orders import Kind
from bench.datapath.processes import Child, answers, free_port

BACKENDS: Final = 2
SCENARIOS: Final = ("cost", "ttft", "hold", "slow", "kill", "throughput")


@dataclass(slots=True)
class Running:
    """A router that serves.

    Attributes:
        processes: the router's own, of which CPU time and memory are read.
        backends: what it relays from; killing one is part of a scenario.
        beside: what it needs and does not count as the router, by name (its bus, say); their CPU time is told apart.
    """

    kind: Kind
    address: str
    processes: list[Child]
    backends: list[Child]
    key: str = ""
    model: str = MODEL
    beside: dict[str, Child] = field(default_factory=dict)

    def cpu_s(self) -> float:
        return sum(process.cpu_s() for process in self.processes)

    def beside_cpu_s(self) -> dict[str, float]:
        return {name: child.cpu_s() for name, child in self.beside.items()}

    def rss_bytes(self) -> int:
        return sum(process.rss_bytes() for process in self.processes)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Stops everything again when what is done in it fails."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for child in (*self.processes, *self.backends, *self.beside.values()):
            child.stop()


class Subject(Protocol):
    """One way of one router."""

    @property
    def name(self) -> str: ...

    @property
    def scenarios(self) -> Sequence[str]:
        """Those of `SCENARIOS` that say something of it."""

    def facts(self) -> Mapping[str, Any]:
        """What a reader needs to know: version, policy, command line."""

    def start(self, folder: Path, *, paced: bool) -> Running:
        """Starts backends and router and waits until requests would pass; logs go to `folder`.

        Args:
            paced: streams will last: for backends that can't be told by each request.

        Raises:
            RuntimeError: something did not start; the message has the end of its log.
        """


@dataclass(frozen=True, slots=True)
class NoRouter:
    """The client talks to a backend. What routers are compared with."""

    name: str = "no router"

    @property
    def scenarios(self) -> Sequence[str]:
        return ("ttft", "hold")

    def facts(self) -> Mapping[str, Any]:
        return {"version": "", "policy": "the client talks to the backend"}

    def start(self, folder: Path, *, paced: bool) -> Running:
        backends = start_http_backends(folder, 1)
        return Running("http", backends[0].address, [backends[0].child], [])


@dataclass(frozen=True, slots=True)
class HttpBackend:
    child: Child
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


def start_http_backends(folder: Path, count: int = BACKENDS) -> Sequence[HttpBackend]:
    """Servers that answer; see `http_backend.py`."""
    started = []
    for number in range(count):
        port = free_port()
        child = Child(["-m", "bench.datapath.http_backend", "--port", str(port)], folder / f"http_backend-{number}.log")
        started.append(HttpBackend(child, port))
    for each in started:
        each.child.wait_until(lambda url=each.url: answers(f"{url}/health"), "the fake OpenAI server")  # type: ignore[misc]
    return started

"""A peer: a router of others in front of the same two backends, in an environment of its own.

In: what to install and how to run it. Out: a `Subject` for `bench/datapath/scenarios.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.datapath.processes import Child, answers, free_port
from bench.datapath.subject import SCENARIOS, HttpBackend, Running, start_http_backends

ENVIRONMENTS: Final = Path(__file__).resolve().parents[2] / ".bench"
_START_S: Final = 90.0


class NotInstalled(Exception):
    """A peer can't be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment under `.bench/` with some distributions of the package index.

    Args:
        requirements: as pip takes them; the first names the peer.
    """

    name: str
    requirements: tuple[str, ...]
    pip_options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def install(self) -> str:
        """Installs what is missing; the peer's version.

        Raises:
            NotInstalled: with pip's last line.
        """
        distribution = self.requirements[0].partition("[")[0].partition("=")[0]
        if not (version := self._version(distribution)):
            self._run(sys.executable, "-m", "venv", str(self.folder))
            self._run(self.python, "-m", "pip", "install", "--quiet", *self.pip_options, *self.requirements)
            version = self._version(distribution)
        return version

    def _version(self, distribution: str) -> str:
        if not Path(self.python).exists():
            return ""
        code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
        done = subprocess.run([self.python, "-c", code], check=False, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    @staticmethod
    def _run(*command: str) -> None:
        # Courteous to whatever else runs on the machine.
        done = subprocess.run(["nice", "-n", "5", *command], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise NotInstalled(f"{' '.join(command[1:])} failed: {lines[-1] if lines else done.returncode}")


@dataclass(frozen=True, slots=True)
class Started:
    """How a peer is run.

    Attributes:
        command: program and arguments. ready: a GET of this path answers 200 once it serves.
        model: what its clients call the model; empty: as the backends do.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    model: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class HttpPeer:
    """A peer whose backends are OpenAI-compatible servers.

    Args:
        policy: how it picks, for the table.
        install: makes sure that it is here; its version.
        run: how to run it on a port, in front of these backends, with a folder for what it writes.
    """

    name: str
    policy: str
    install: Callable[[], str]
    run: Callable[[int, Sequence[HttpBackend], Path], Started]

    @property
    def scenarios(self) -> Sequence[str]:
        return SCENARIOS

    def facts(self) -> Mapping[str, Any]:
        return {"version": self.install(), "policy": self.policy}

    def start(self, folder: Path, *, paced: bool) -> Running:
        folder.mkdir(parents=True, exist_ok=True)
        backends = start_http_backends(folder)
        port = free_port()
        how = self.run(port, backends, folder)
        router = Child(how.command, folder / "router.log", how.environment)
        running = Running("http", f"127.0.0.1:{port}", [router], [each.child for each in backends], key=how.key)
        if how.model:
            running.model = how.model
        with running.starting():
            router.wait_until(lambda: answers(f"http://127.0.0.1:{port}{how.ready}"), self.name, _START_S)
        return running


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def cores() -> int:
    return len(os.sched_getaffinity(0))

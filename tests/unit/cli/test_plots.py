"""Runs as pictures: there are files of the kind that was asked for, and what cannot be is said before the run."""

from pathlib import Path

import pytest

from services.cli.output import CommandFailed
from services.cli.plots import KINDS, check, plot_compared, plot_run
from services.mesh.accelerators import load_catalogue
from services.twin.compare import compare
from services.twin.report import report
from services.twin.run import simulate
from services.twin.scenario import Event, Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest

CATALOGUE = load_catalogue()
SCENARIO = Scenario(
    fleet=Fleet.parse("nvidia-l4", CATALOGUE),
    model="llama-3.1-8b",
    classes=usual_classes(),
    drain_s=1.0,
    events=(Event(1.0, "fail", ("nvidia-l4-0",)),),  # so that some have no token
)
TRACE = [TraceRequest(arrival_s=number * 0.2, prompt_tokens=100, completion_tokens=20) for number in range(10)]
_BEGINS = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_becomes_a_picture_of_the_kind_that_its_name_says(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"run{kind}"
    check(path)
    plot_run(simulate(SCENARIO, CATALOGUE, TRACE, "least-requests"), path)
    assert path.read_bytes().startswith(_BEGINS[kind])


def test_policies_side_by_side_become_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "compared.svg"
    names = ("least-requests", "round-robin")
    check(path)
    plot_compared(compare({name: [report(simulate(SCENARIO, CATALOGUE, TRACE, name))] for name in names}), path)
    assert path.read_bytes().startswith(_BEGINS[".svg"])


@pytest.mark.parametrize(("name", "why"), [("run.txt", "must end with"), ("nowhere/run.svg", "there is no folder")])
def test_a_picture_that_cannot_be_is_refused_before_the_run(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(CommandFailed, match=why):
        check(tmp_path / name)

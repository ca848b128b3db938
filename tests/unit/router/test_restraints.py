"""What the mesh was told runs away is held back at the door, for as long as it was told."""

from dataclasses import replace
from typing import Any, Final

import pytest

from services.mesh.errors import QueueFull, RunawayStopped
from services.mesh.events import RunawayFound
from services.router.core.restraints import Restraints
from tests.unit.router.test_admission import asked

FOUND: Final = RunawayFound(
    found_by="meter-0",
    tenant="acme",
    scope="workload",
    name="support",
    kind="velocity",
    grade="stop",
    dry_run=False,
    observed=40_000.0,
    usual=2000.0,
    unit="tokens",
    allowed_rps=0.5,
    cap_tokens=128,
    evidence="40000 tokens in 10 s, usually 2000",
    at_unix_ms=1_000_000,
    until_unix_ms=1_180_000,
)


def restrained(**changes: Any) -> Restraints:
    restraints = Restraints()
    restraints.fold(replace(FOUND, **changes), 0.0)
    return restraints


def test_what_is_stopped_is_told_why_and_until_when() -> None:
    with pytest.raises(RunawayStopped, match="usually 2000") as refused:
        restrained().check(asked(), 100.0)
    assert refused.value.retry_after_s == pytest.approx(80.0)


def test_others_are_let_in() -> None:
    restraints = restrained()
    restraints.check(asked(workload="other"), 1.0)
    restraints.check(asked(tenant="other"), 1.0)


def test_it_ends_by_itself_whatever_the_clock_of_whoever_said_so() -> None:
    restraints = restrained()
    restraints.check(asked(), 180.0)
    assert not restraints


def test_a_slowed_scope_keeps_its_pace() -> None:
    restraints = restrained(grade="slow")
    restraints.check(asked(), 0.0)
    with pytest.raises(QueueFull, match=r"0\.5 requests/s") as refused:
        restraints.check(asked(), 1.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    restraints.check(asked(), 2.0)


def test_a_capped_scope_is_let_in_with_shorter_answers() -> None:
    restraints = restrained(grade="cap")
    assert restraints.cap_tokens(asked(), 0.0) == 128
    assert restraints.cap_tokens(asked(workload="other"), 0.0) == 0
    assert restrained(grade="slow").cap_tokens(asked(), 0.0) == 0


@pytest.mark.parametrize("changes", [{"dry_run": True}, {"grade": "notify"}, {"grade": "none"}])
def test_a_dry_run_a_word_and_an_end_hold_nothing_back(changes: dict[str, Any]) -> None:
    assert not restrained(**changes)
    restraints = restrained()
    restraints.fold(replace(FOUND, at_unix_ms=FOUND.at_unix_ms + 1, **changes), 1.0)
    assert not restraints


def test_the_word_that_comes_last_counts_whatever_its_publishers_clock_says() -> None:
    restraints = restrained()
    restraints.fold(replace(FOUND, at_unix_ms=FOUND.at_unix_ms - 300_000, grade="none"), 1.0)
    assert not restraints


def test_a_session_and_a_tenant_are_scopes_too() -> None:
    for changes in ({"scope": "session", "name": "s-1"}, {"scope": "tenant", "name": ""}):
        with pytest.raises(RunawayStopped):
            restrained(**changes).check(asked(session_id="s-1"), 1.0)

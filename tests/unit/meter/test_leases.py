"""Whom the meter grants credit."""

from services.mesh.events import LeaseAsked
from services.meter.core.leases import Leases


def asked(holder: str) -> LeaseAsked:
    return LeaseAsked(holder=holder, epoch="0000000000001-aa", ended=False, lines=(), unused=(), linger_ms=0)


def test_a_holder_whose_name_is_longer_than_any_is_refused_and_not_remembered() -> None:
    leases = Leases(30.0)
    assert not leases.answer(asked("router-0"), 0.0, 0).refused
    assert "70017 characters is too long" in leases.answer(asked("r" * 70_000), 0.0, 0).refused
    assert leases.dead(1e6) == ["router-0/0000000000001-aa"]

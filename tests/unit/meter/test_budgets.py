from hypothesis import given
from hypothesis import strategies as st

from services.meter.core.budgets import ANNOUNCE_EVERY_S, Accounts, Credit


def _announce(accounts: Accounts, now_s: float) -> list[Credit]:
    ready, _ = accounts.due(now_s)
    for credit in ready:
        accounts.announced(credit, now_s)
    return ready


def test_tenants_without_a_budget_are_not_kept_and_the_first_begins_with_what_the_books_say() -> None:
    accounts = Accounts()
    accounts.spend("acme", 100)
    assert accounts.of("acme") is None
    assert accounts.due(0.0) == ([], None)
    assert accounts.set_limit("acme", 1000, 100) == Credit("acme", 1000, 100)
    accounts.spend("acme", 5)
    assert accounts.set_limit("acme", 2000, 0) == Credit("acme", 2000, 105)


def test_a_change_waits_until_the_last_one_is_old_enough() -> None:
    accounts = Accounts()
    accounts.set_limit("acme", 1000, 0)
    assert _announce(accounts, 0.0) == [Credit("acme", 1000, 0)]
    accounts.spend("acme", 10)
    assert accounts.due(0.04) == ([], ANNOUNCE_EVERY_S - 0.04)
    assert _announce(accounts, 0.1) == [Credit("acme", 1000, 10)]
    assert accounts.due(0.1) == ([], None)


def test_exhaustion_and_a_top_up_are_due_at_once() -> None:
    accounts = Accounts()
    accounts.set_limit("acme", 100, 0)
    _announce(accounts, 0.0)
    accounts.spend("acme", 100)
    (exhausted,) = _announce(accounts, 0.001)
    assert (exhausted.exhausted, exhausted.remaining_nusd) == (True, 0)
    accounts.set_limit("acme", 150, 0)
    (topped_up,) = _announce(accounts, 0.002)
    assert (topped_up.exhausted, topped_up.remaining_nusd) == (False, 50)


def test_what_could_not_be_announced_stays_due() -> None:
    accounts = Accounts()
    accounts.set_limit("acme", 100, 0)
    assert accounts.due(0.0)[0] == accounts.due(5.0)[0] == [Credit("acme", 100, 0)]


def test_a_restored_budget_is_announced_again_also_one_that_was_lifted() -> None:
    accounts = Accounts()
    accounts.restore(Credit("acme", 100, 40))
    accounts.restore(Credit("lifted", None, 7))
    assert {credit.tenant for credit in _announce(accounts, 0.0)} == {"acme", "lifted"}


@given(
    limit=st.integers(0, 50),
    steps=st.lists(st.tuples(st.integers(-3, 10), st.floats(0, 0.2)), max_size=30),
)
def test_readers_end_up_with_the_true_credit_and_never_wait_for_exhaustion(
    limit: int, steps: list[tuple[int, float]]
) -> None:
    accounts, now_s, known = Accounts(), 0.0, None
    accounts.set_limit("acme", limit, 0)
    for amount, gap_s in steps:
        accounts.spend("acme", amount)
        now_s += gap_s
        known = next(iter(_announce(accounts, now_s)), known)
        assert known is not None
        assert known.exhausted == accounts.of("acme").exhausted
    assert next(iter(_announce(accounts, now_s + 1)), known) == accounts.of("acme")

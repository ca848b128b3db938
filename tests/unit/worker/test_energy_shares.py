"""Who gets which part of measured energy."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.events import MODELLED
from services.worker.account import Account
from services.worker.energy_shares import EnergyShares


def account(name: str = "r") -> Account:
    return Account(
        request_id=name, tenant="acme", workload="", model="m", slo_class="standard", traceparent="", from_index=0
    )


class Desk:
    """Reports when told to, as the reporter does on its own."""

    def __init__(self) -> None:
        self.noted: dict[Account, None] = {}
        self.reported: list[tuple[str, int, str, bool]] = []
        self.shares = EnergyShares(self.note)

    def note(self, each: Account) -> None:
        each.noted = True
        self.noted[each] = None
        self.shares.noted(each)

    def work(self, each: Account, modelled_uj: int) -> None:
        """As a step does."""
        each.modelled_uj += modelled_uj
        if not each.noted:
            self.note(each)

    def end(self, each: Account) -> None:
        each.last = True
        self.note(each)

    def report(self) -> None:
        for each in list(self.noted):
            self.shares.settle(each)
            entry = each.entry("")
            self.reported.append((each.request_id, entry.energy_uj, each.energy_source, entry.last))
            del self.noted[each]
            each.reported()

    def energy_uj(self, source: str) -> int:
        return sum(energy for _, energy, by, _ in self.reported if by == source)


def test_without_a_meter_energy_is_the_models() -> None:
    desk, one = Desk(), account()
    desk.work(one, 70)
    desk.end(one)
    desk.report()
    assert desk.reported == [("r", 70, MODELLED, True)]


def test_measured_energy_is_shared_by_the_models_weights() -> None:
    desk, one, other = Desk(), account("one"), account("other")
    desk.shares.measure("nvml")
    desk.work(one, 300)
    desk.work(other, 100)
    assert desk.shares.share(1000, "nvml")
    desk.report()
    assert desk.reported == [("one", 750, "nvml", False), ("other", 250, "nvml", False)]


def test_tokens_are_reported_before_their_energy_is_known_and_the_last_entry_after() -> None:
    desk, one = Desk(), account()
    desk.shares.measure("nvml")
    desk.work(one, 300)
    one.count = 5
    desk.end(one)
    desk.report()
    assert desk.reported == [("r", 0, "", False)]
    assert desk.shares.share(1000, "nvml")
    desk.report()
    assert desk.reported[1:] == [("r", 1000, "nvml", True)]


def test_nobody_worked_for_takes_nothing() -> None:
    desk, one = Desk(), account()
    desk.shares.measure("nvml")
    assert not desk.shares.share(1000, "nvml")
    desk.work(one, 10)
    assert desk.shares.share(5, "nvml")
    assert not desk.shares.share(1000, "nvml"), "its work is paid"


def test_when_the_meter_is_gone_what_waited_is_the_models() -> None:
    desk, one, other = Desk(), account("one"), account("other")
    desk.shares.measure("nvml")
    desk.work(one, 300)
    desk.end(one)
    desk.report()
    desk.work(other, 40)
    desk.shares.measure("")
    desk.report()
    assert sorted(desk.reported) == [
        ("one", 0, "", False),
        ("one", 300, MODELLED, True),
        ("other", 40, MODELLED, False),
    ]


def test_an_engine_that_measures_itself_is_named() -> None:
    desk, one = Desk(), account()
    desk.shares.engine_source = "acme"
    desk.work(one, 70)
    desk.end(one)
    desk.report()
    assert desk.reported == [("r", 70, "acme", True)]


def test_energy_that_is_partly_modelled_is_not_called_measured() -> None:
    desk, one = Desk(), account()
    desk.work(one, 30)
    one.charge(30, MODELLED)
    one.modelled_uj = 5
    one.charge(7, "nvml")
    assert (one.energy_uj, one.energy_source) == (37, MODELLED)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("work"), st.integers(0, 4), st.integers(0, 1000)),
            st.tuples(st.just("share"), st.integers(0, 10**6), st.just(0)),
            st.tuples(st.just("report"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_entries_add_up_to_what_was_shared(steps: list[tuple[str, int, int]]) -> None:
    desk, accounts, shared_uj = Desk(), [account(str(number)) for number in range(5)], 0
    desk.shares.measure("nvml")
    for what, number, modelled_uj in steps:
        if what == "work":
            desk.work(accounts[number], modelled_uj)
        elif what == "report":
            desk.report()
        elif desk.shares.share(number, "nvml"):
            shared_uj += number
    for each in accounts:
        desk.end(each)
    if desk.shares.share(77, "nvml"):
        shared_uj += 77
    desk.report()
    desk.report()
    assert desk.energy_uj("nvml") == shared_uj
    assert desk.energy_uj(MODELLED) == 0
    assert [last for name, _, _, last in desk.reported if last].count(True) == len(accounts)

"""Who gets which part of the energy that a step, or a meter, says was used.

In: accounts as their steps are noted, each with the energy that the model gives it; what a meter has measured since the
last time. Out: the same accounts with the energy that is theirs.

While no meter is read, an account's energy is what its engine says, by the model as a rule. While one is, the engine's
word only weighs: what was measured is shared among those worked for since the last reading, in proportion to it, to the
microjoule. A request may have ended by then: its tokens are reported at once, and its last entry when its energy is
known.
"""

from collections.abc import Callable

from services.mesh.events import MODELLED
from services.worker.account import Account
from services.worker.core.attribution import share_out


class EnergyShares:
    """The accounts of one worker that have energy coming to them.

    Attributes:
        engine_source: what the engine's own figures come from.
        stepped_s: when the last step ended, on the worker's clock.
    """

    def __init__(self, report: Callable[[Account], None]) -> None:
        """`report`: called with each account that has something to report and was not noted."""
        self.engine_source = MODELLED
        self.stepped_s = 0.0
        self._meter = ""
        self._report = report
        self._waiting: dict[Account, None] = {}  # in the order they were noted

    @property
    def source(self) -> str:
        """What energy comes from now."""
        return self._meter or self.engine_source

    def noted(self, account: Account) -> None:
        """The account has, or is about to have, energy by its engine's word."""
        if self._meter:
            self._waiting[account] = None

    def settle(self, account: Account) -> None:
        """It is about to be reported: where no meter is read, its energy is what its engine said."""
        if account.modelled_uj and account not in self._waiting:
            account.charge(account.modelled_uj, self.engine_source)

    def measure(self, meter: str) -> None:
        """From here on energy comes from `meter`; empty: from the engine again, as does what waits for a meter."""
        self._meter = meter
        if meter:
            return
        waiting, self._waiting = self._waiting, {}
        for account in waiting:
            if account.modelled_uj and not account.noted:
                self._report(account)

    def share(self, energy_uj: int, source: str) -> bool:
        """Shares measured energy among those worked for since the last time, all of it.

        Returns:
            False: nobody was worked for, and nothing is taken.
        """
        sharers = [each for each in self._waiting if each.modelled_uj]
        if not sharers:
            return False
        parts = share_out(energy_uj, [each.modelled_uj for each in sharers])
        # A noted account may be worked for again without being noted anew.
        self._waiting = {each: None for each in self._waiting if each.noted}
        for account, part in zip(sharers, parts, strict=True):
            account.charge(part, source)
            if not account.noted:
                self._report(account)
        return True

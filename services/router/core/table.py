"""The workers of one model as columns of numbers, so that one request is held against all of them in one go.

A row is one worker; a column is one figure of it that does not depend on the request, as it was told or counted:
`serving` writes a row's when something changes, `scores` says what follows from them, `ranking` works that out. Columns
lie one after the other in memory, in single precision, of which a processor computes twice as many at once: predictions
are not good to seven digits. Rows are dense: one that goes is replaced by the last.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.mesh.confines import Confines
from services.mesh.priorities import RANKS
from services.router.core.fused import LANES
from services.router.core.prefixes import Cached

if TYPE_CHECKING:  # a Serving knows its table
    from services.router.core.serving import Serving

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)

OFFER: Final = (  # what changes with a worker's device, its settings and the plan
    "prefill_s_per_token",  # the timing in force, see `mesh/timing`
    "prefill_s_per_attended_token",
    "prefill_overhead_s",
    "decode_base_s",
    "decode_s_per_sequence",
    "decode_s_per_kv_token",
    "chunk_tokens",  # the most of a prompt that one step computes; >= 1
    "usd_per_s",  # rate, energy and shadow price of a device-second
)
LOAD: Final = (  # what changes with every heartbeat and every placement
    "slow",  # by how much the timing is passed
    "running",
    "waiting",  # told, and placed since
    # by rank of priority (`mesh/priorities`), the urgent first: those that would go before a request that came now, and
    # prompt tokens that would be computed before its own
    *(f"before_{rank}" for rank in range(RANKS)),
    *(f"ahead_tokens_{rank}" for rank in range(RANKS)),
    "kv_tokens",  # KV cache in use
    "growth_tokens",  # what our requests there are still expected to add to that
    # prompt tokens per second placed lately: by rank those more urgent, then all; device-seconds per second, and those
    # of them that are of tenants who take more than their share
    *(f"passing_tps_{rank}" for rank in range(RANKS)),
    "arriving_tps",
    "promised",
    "promised_yielding",
    "kv_capacity_tokens",  # >= 1
    "max_batch",  # >= 1
    "limit_s",  # what its steps take at most while they compute prompts, unless they are slow; > 0
    "room_tokens",  # the longest prompt taken now, plus one; 0 where new requests are not taken
    # the parts, 0 to 1, that are of tenants who take more than their share: of what is at stake, of our requests there
    "yielding",
    "yielding_there",
    # then for each band of promises: what the TPOT promises of our requests running there are worth, in dollars
)
_USD_PER_S: Final = OFFER.index("usd_per_s")
_FIRST_CAPACITY: Final = 2 * LANES
_SPARE_POOLS: Final = 64  # names that no worker has any more
_MOST_SINGLE: Final = float(np.finfo(np.float32).max)
_MOST_FEATURES: Final = 60  # told apart
_MOST_CONFINES: Final = 1024  # remembered


def figure_names(bands: int) -> tuple[str, ...]:
    """Every column of a table's figures, in order; the last is of the request that was ranked last."""
    return (*OFFER, *LOAD, *[f"at_stake_usd_{band}" for band in range(bands)], "cached")


class ModelTable:
    """One model's workers.

    Attributes:
        serving: who each row is, in row order.
        row_of: the row of each worker, by its slot.
        figures: (columns, rows) as `figure_names`.
        heard_s: (rows,) when each worker's last heartbeat came, router's monotonic seconds.
        tried_s: (rows,) when it last got a request of ours; minus infinity: never.
        linked: (rows,) 1 where the session to it stands.
        usd, soonest_s: (rows,) what `ranking` worked out last.
        slots: (rows,) the workers' slots.
        pools: (rows,) a number for each worker's pool; `pool_names` has them by number.
        capacity: rows that there is room for: so far apart the columns lie.
        whole_rows: the rows, and a few beyond, so that a processor has as many as it computes at once.
        address: of the figures in memory.
        results_at: addresses of `usd` and `soonest_s`.
    """

    def __init__(self, model: str, bands: int) -> None:
        self.model = model
        self.serving: list[Serving] = []
        self.row_of: dict[int, int] = {}
        self.pool_names: list[str] = []
        self._pool_numbers: dict[str, int] = {}
        self._feature_bits: dict[str, int] = {}
        self._admitted: dict[Confines, Mask] = {}
        self._any_cached = False
        self._slots_end = 0
        self._all_heard_s = -inf
        self._hold(
            np.zeros((len(figure_names(bands)), _FIRST_CAPACITY), np.float32),
            np.zeros((2, _FIRST_CAPACITY)),
            np.zeros((4, _FIRST_CAPACITY), np.intp),
        )

    def __len__(self) -> int:
        return len(self.serving)

    def able(self, features: Iterable[str]) -> Mask:
        """(rows,) whether the worker's engine can do all of these beyond plain generation."""
        wanted = self._bits(features)
        able: Mask = self._features & wanted == wanted
        return able

    def admitted(self, confines: Confines) -> Mask:
        """(rows,) whether the worker is where a request so confined may be computed."""
        found = self._admitted.get(confines)
        if found is None:
            if len(self._admitted) >= _MOST_CONFINES:
                self._admitted.clear()
            found = np.array([confines.admits(each.worker.site) for each in self.serving], np.bool_)
            self._admitted[confines] = found
        return found

    def silent_since(self, since_s: float) -> bool:
        """Whether any worker was not heard since then."""
        if self._all_heard_s < since_s:  # times only grow, so that what held for the earliest of them holds
            self._all_heard_s = float(self.heard_s.min())
        return self._all_heard_s < since_s

    def add(self, serving: "Serving") -> int:
        """A new row; its number. It is zeros until it is written."""
        row = len(self.serving)
        if row == self.capacity:
            self._hold(_doubled(self._figures), _doubled(self._times), _doubled(self._numbers))
        for each in self._all:
            each[:, row] = 0
        self.serving.append(serving)
        self._show()
        self.replace(row, serving)
        return row

    def replace(self, row: int, serving: "Serving") -> None:
        """Says anew who a row is."""
        self.serving[row] = serving
        self._admitted.clear()
        worker = serving.worker
        number = self._pool_number(worker.pool)
        self._numbers[:, row] = worker.slot, number, self._bits(worker.beat.features), worker.linked
        self.row_of[worker.slot] = row
        self._slots_end = max(self._slots_end, worker.slot + 1)

    def _pool_number(self, pool: str) -> int:
        number = self._pool_numbers.get(pool)
        if number is not None:
            return number
        if len(self.pool_names) > 2 * len(self.serving) + _SPARE_POOLS:  # most of them are of workers that are gone
            self.pool_names = list(dict.fromkeys(each.worker.pool for each in self.serving))
            self._pool_numbers = {name: number for number, name in enumerate(self.pool_names)}
            for row, each in enumerate(self.serving):
                self.pools[row] = self._pool_numbers[each.worker.pool]
            return self._pool_number(pool)
        number = self._pool_numbers[pool] = len(self.pool_names)
        self.pool_names.append(pool)
        return number

    def remove(self, row: int) -> None:
        """Takes a row out; the last row takes its number."""
        del self.row_of[self.serving[row].worker.slot]
        moved = self.serving.pop()
        self._admitted.clear()
        last = len(self.serving)
        if row < last:
            for each in self._all:
                each[:, row] = each[:, last]
            self.serving[row] = moved
            self.row_of[moved.worker.slot] = row
            moved.row = row
        self._show()

    def write_offer(self, row: int, figures: Sequence[float]) -> None:
        """Sets what `OFFER` names."""
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite
            self._offers[:, row] = figures

    def write_load(self, row: int, figures: Sequence[float], *, heard_s: float, tried_s: float, linked: bool) -> None:
        """Sets what `LOAD` names, what is at stake, and the rest that is not the row's name or offer."""
        if max(figures) <= _MOST_SINGLE and min(figures) >= -_MOST_SINGLE:  # nearly always, and said sooner than below
            self._loads[:, row] = figures
        else:
            with np.errstate(over="ignore"):  # what single precision cannot hold is infinite
                self._loads[:, row] = figures
        self.heard_s[row], self.tried_s[row], self.linked[row] = heard_s, tried_s, linked

    @contextmanager
    def dearer(self, usd_per_s: Sequence[float]) -> Iterator[None]:
        """Meanwhile a device-second costs so much more, by pool; below 0: less, but never less than nothing."""
        prices = self.figures[_USD_PER_S]
        before = prices.copy()
        np.maximum(prices + np.asarray(usd_per_s, np.float32)[self.pools], 0.0, out=prices)
        try:
            yield
        finally:
            prices[:] = before

    def write_cached(self, cached: Cached, most: float) -> None:
        """Sets what of a prompt is expected to be cached: at most `most` tokens on any worker."""
        if self._any_cached:
            self._cached.fill(0.0)
        self._any_cached = bool(cached)
        if not cached:
            return
        if cached.few:
            for slot, tokens in cached.each():
                if (row := self.row_of.get(slot)) is not None:
                    self._cached[row] = tokens if tokens < most else most
        else:
            self.figures[-1] = cached.by_slot(self._slots_end, most)[self.slots]

    def shown(self, rows: Sequence[int]) -> Singles:
        """(columns, rows) a copy of the figures of some rows, for a record."""
        return self._figures.take(rows, axis=1)

    def _bits(self, features: Iterable[str]) -> int:
        bits, known = 0, self._feature_bits
        for each in features:
            # A worker may tell of any number of features; those beyond what a bit can be had for share one.
            if each not in known and len(known) < _MOST_FEATURES:
                known[each] = 1 << len(known)
            bits |= known.get(each, 1 << _MOST_FEATURES)
        return bits

    def _hold(self, figures: Singles, times: Floats, numbers: Rows) -> None:
        self._figures, self._times, self._numbers = self._all = figures, times, numbers
        self._offers, self._loads, self._cached = figures[: len(OFFER)], figures[len(OFFER) : -1], figures[-1]
        self.address, self.capacity = figures.ctypes.data, figures.shape[1]
        self._results = np.zeros((2, self.capacity), np.float32)
        self.results_at = self._results[0].ctypes.data, self._results[1].ctypes.data
        self._show()

    def _show(self) -> None:
        """As many rows as there are."""
        rows = len(self.serving)
        self.whole_rows = -(-rows // LANES) * LANES
        self.figures, (self.heard_s, self.tried_s) = self._figures[:, :rows], self._times[:, :rows]
        self.slots, self.pools, self._features, self.linked = self._numbers[:, :rows]
        self.usd, self.soonest_s = self._results[:, :rows]


def _doubled(rows: NDArray[_Number]) -> NDArray[_Number]:
    """With as many rows more, of zeros."""
    return np.concatenate((rows, np.zeros_like(rows)), axis=1)

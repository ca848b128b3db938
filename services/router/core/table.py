"""The workers of one model as columns of numbers, so that one request is held against all of them in one go.

A row is one worker; a column is one figure of it that does not depend on the request, with the worker's slowness, load
and plan worked in already: `serving.py` derives a row when something changes, `ranking` and `scores` read columns. Rows
are dense: one that goes is replaced by the last.

The figures are kept twice, for two ways to read them. What bounds a score (`BOUNDS`) is read of all workers at a time:
column by column, in single precision, of which a processor computes twice as many at once. What a score is made of
(`FIGURES`) is read of a few workers at a time: row by row, in double precision.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from services.mesh.priorities import RANKS
from services.router.core.floors import BUCKETS

if TYPE_CHECKING:  # a Serving knows its table
    from services.router.core.serving import Serving

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

BOUNDS: Final = (
    # The first eight are what a request's lengths are multiplied into (see `ranking.bounds_usd`): as the figures called
    # so, in the dollars that the seconds cost.
    "token_usd",
    "attended_usd",
    "chunk_overhead_usd",
    "read_usd",
    "sequence_usd",
    "weights_usd",
    "sure_second_usd",  # of a second, less what prefills that keep arriving stretch it by
    "kv_capacity_tokens",
    "max_batch",
    "batch",
    "closed",  # infinite where new requests are not taken, else 0
    # then for each band and bucket, see `floors`: what lateness costs at least; infinite where `closed` is
)
FIGURES: Final = (
    "token_s",  # of a prefill, for each token (see `mesh/timing`); seconds are the worker's own, slowness included
    "attended_s",  # of a prefill, for each token attended to
    "chunks_per_token",
    "chunk_overhead_s",
    "weights_s",  # the part of a step that all its sequences share
    "sequence_s",  # what each sequence adds to a step; > 0
    "read_s",  # of a decode step, for each token of KV cache
    "step_s",  # of a decode step with one more sequence, which brings no KV tokens
    "riding_s",  # what a chunk takes longer for the sequences that decode meanwhile
    # by rank of priority (`mesh/priorities`), the urgent first: until a request that came now would be computed, batch
    # slots and KV cache being free
    *(f"queue_s_{rank}" for rank in range(RANKS)),
    *(f"short_slots_{rank}" for rank in range(RANKS)),  # requests ahead that no batch slot is free for, per slot
    "short_kv_tokens",  # KV cache that is in use or spoken for, beyond the capacity; negative where some is free
    "kv_capacity_tokens",
    "batch",  # sequences of a step that it joins; >= 1
    "max_batch",  # the most; >= 1
    "stretch",  # how much prefills that keep arriving stretch the time between two tokens, >= 1
    "sureness",  # 1 / stretch
    "there_tpot_s",  # seconds per token of those who are there, as it is
    "usd_per_s",  # rate, energy and shadow price of a device-second
    "room_tokens",  # the longest prompt taken now, plus one; 0 where new requests are not taken
    "heard_s",  # when the last heartbeat came, router's monotonic seconds
    "tried_s",  # when it last got a request of ours
    "linked",  # 1 where the session to the worker stands
    # then for each band of promises: what the TPOT promises of the requests running there are worth, in dollars; and
    # how probably they are late as it is
)
_TRIED: Final = FIGURES.index("tried_s")
_THERE_TPOT: Final = FIGURES.index("there_tpot_s")
_FIRST_CAPACITY: Final = 16


def figure_names(bands: int) -> tuple[str, ...]:
    """Every column of a table's figures, in order."""
    of_bands = [f"{name}_{band}" for name in ("at_stake_usd", "late_before") for band in range(bands)]
    return (*FIGURES, *of_bands)


class ModelTable:
    """One model's workers.

    Attributes:
        serving: who each row is, in row order.
        row_of: the row of each worker, by its slot.
        bounds: (columns, rows) as `BOUNDS`.
        figures: (rows, columns) as `figure_names`.
        slots: (rows,) the workers' slots.
        pools: (rows,) a number for each worker's pool; `pool_names` has them by number.
        staked: rows that have something at stake.
        longest_chunk_tokens: no worker has computed, or computes, more tokens of prompt in a step.
    """

    def __init__(self, model: str, bands: int) -> None:
        self.model = model
        self.serving: list[Serving] = []
        self.row_of: dict[int, int] = {}
        self.pool_names: list[str] = []
        self.staked = 0
        self.longest_chunk_tokens = 1
        self._pool_numbers: dict[str, int] = {}
        self._feature_bits: dict[str, int] = {}
        self._all_bounds = np.zeros((len(BOUNDS) + len(BUCKETS) * bands, _FIRST_CAPACITY), np.float32)
        self._all_figures = np.zeros((_FIRST_CAPACITY, len(figure_names(bands))))
        self._numbers = np.zeros((3, _FIRST_CAPACITY), np.intp)
        self._stakes: list[bool] = []
        self._resize()

    def __len__(self) -> int:
        return len(self.serving)

    @property
    def tried_s(self) -> Floats:
        """(rows,) when each worker last got a request of ours."""
        return self.figures[:, _TRIED]

    def there_tpot_s(self, row: int) -> float:
        """Seconds per token of those who run at a row's worker, as it was last written."""
        return float(self.figures[row, _THERE_TPOT])

    def able(self, features: Iterable[str]) -> Mask:
        """(rows,) whether the worker's engine can do all of these beyond plain generation."""
        wanted = self._bits(features)
        able: Mask = self._features & wanted == wanted
        return able

    def add(self, serving: "Serving") -> int:
        """A new row; its number. It is zeros until it is written."""
        row = len(self.serving)
        if row == len(self._all_figures):
            self._all_bounds = np.concatenate((self._all_bounds, np.zeros_like(self._all_bounds)), axis=1)
            self._all_figures = np.concatenate((self._all_figures, np.zeros_like(self._all_figures)))
            self._numbers = np.concatenate((self._numbers, np.zeros_like(self._numbers)), axis=1)
        self._all_bounds[:, row] = 0.0
        self._all_figures[row] = 0.0
        self.serving.append(serving)
        self._stakes.append(False)
        self._resize()
        self.replace(row, serving)
        return row

    def replace(self, row: int, serving: "Serving") -> None:
        """Says anew who a row is."""
        self.serving[row] = serving
        worker = serving.worker
        number = self._pool_numbers.get(worker.pool)
        if number is None:
            number = self._pool_numbers[worker.pool] = len(self.pool_names)
            self.pool_names.append(worker.pool)
        self._numbers[:, row] = worker.slot, number, self._bits(worker.beat.features)
        self.row_of[worker.slot] = row
        self.longest_chunk_tokens = max(self.longest_chunk_tokens, worker.beat.prefill_chunk_tokens)

    def remove(self, row: int) -> None:
        """Takes a row out; the last row takes its number."""
        del self.row_of[self.serving[row].worker.slot]
        self.staked -= self._stakes[row]
        moved, its_stake = self.serving.pop(), self._stakes.pop()
        last = len(self.serving)
        if row < last:
            self._all_bounds[:, row] = self._all_bounds[:, last]
            self._all_figures[row] = self._all_figures[last]
            self._numbers[:, row] = self._numbers[:, last]
            self.serving[row], self._stakes[row] = moved, its_stake
            self.row_of[moved.worker.slot] = row
            moved.row = row
        self._resize()

    def write(self, row: int, bounds: Sequence[float], figures: Sequence[float], *, staked: bool) -> None:
        """Sets a whole row.

        Args:
            staked: whether anything is at stake.
        """
        self._all_bounds[:, row] = bounds
        self._all_figures[row] = figures
        self.staked += staked - self._stakes[row]
        self._stakes[row] = staked

    def _bits(self, features: Iterable[str]) -> int:
        bits = 0
        for each in features:
            # A worker may tell of any number of features; those beyond what a bit can be had for share one.
            bits |= self._feature_bits.setdefault(each, 1 << min(len(self._feature_bits), 60))
        return bits

    def _resize(self) -> None:
        rows = len(self.serving)
        self.bounds = self._all_bounds[:, :rows]
        self.figures = self._all_figures[:rows]
        self.slots, self.pools, self._features = self._numbers[:, :rows]

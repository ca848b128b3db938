"""The workers of one model as columns of numbers, so that one request is scored against all of them in one go.

A row is one worker; a column is one figure of it that does not depend on the request, with the worker's slowness, load
and plan worked in already: `serving.py` derives a row when something changes, `ranking` and `scores` read columns. Rows
are dense: one that goes is replaced by the last. Figures are single precision, of which a processor computes twice as
many at once as of doubles: seven digits, where predictions are good for one. Times are not.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a Serving knows its table
    from services.router.core.serving import Serving

Floats = NDArray[np.floating[Any]]

_FIRST_CAPACITY: Final = 16


class Columns:
    """Every column, each (rows,); seconds are the worker's own, slowness included.

    Attributes:
        token_s, attended_s: of a prefill, for each token and for each token attended to (see `mesh/timing`).
        read_s: of a decode step, for each token of KV cache.
        sureness: 1 over how much prefills that keep arriving stretch the time between two tokens; 0 to 1.
        kv_capacity_tokens: of the KV cache.
        step_s: of a decode step with one more sequence, which brings no KV tokens.
        sequence_s: what each sequence adds to a step, > 0.
        weights_s: the part of a step that all its sequences share.
        chunks_per_token, chunk_overhead_s: of a prefill.
        riding_s: what a chunk takes longer for the sequences that decode meanwhile.
        queue_s: until a request that came now would be computed, batch slots and KV cache being free.
        short_slots: requests ahead that no batch slot is free for, per slot.
        short_kv_tokens: KV cache that is in use or spoken for, beyond the capacity; negative where some is free.
        batch, max_batch: sequences of a step that it joins, and the most; >= 1.
        stretch: 1 over `sureness`.
        usd_per_s: rate, energy and shadow price of a device-second.
        room_tokens: the longest prompt taken now, plus one; 0 where new requests are not taken.
        linked: 1 where the session to the worker stands.
        there_tpot_s: seconds per token of those who are there, as it is.
        at_stake_usd: (bands, rows) what the TPOT promises of the requests running there are worth, by band of promise.
        late_before: (bands, rows) how probably they are late as it is.
    """

    # The first five are multiplied by what a request brings, the next two added to what it reads: see `ranking`.
    token_s: Floats
    attended_s: Floats
    read_s: Floats
    sureness: Floats
    kv_capacity_tokens: Floats
    step_s: Floats
    sequence_s: Floats
    weights_s: Floats
    chunks_per_token: Floats
    chunk_overhead_s: Floats
    riding_s: Floats
    queue_s: Floats
    short_slots: Floats
    short_kv_tokens: Floats
    batch: Floats
    max_batch: Floats
    stretch: Floats
    usd_per_s: Floats
    room_tokens: Floats
    linked: Floats
    there_tpot_s: Floats
    at_stake_usd: Floats
    late_before: Floats

    def __init__(self, cells: Floats, bands: int) -> None:
        """`cells`: (columns, rows) in the order above, with a row for each band of the last two."""
        self.bind(cells, bands)

    def bind(self, cells: Floats, bands: int) -> None:
        """Makes the columns views of `cells`."""
        self.cells = cells
        for name, column in zip(_NAMES, cells, strict=False):
            setattr(self, name, column)
        self.at_stake_usd = cells[len(_NAMES) : len(_NAMES) + bands]
        self.late_before = cells[len(_NAMES) + bands :]


_NAMES: Final = tuple(Columns.__annotations__)[:-2]


class ModelTable(Columns):
    """One model's workers.

    Attributes:
        serving: who each row is, in row order.
        slots: (rows,) the workers' slots.
        pools: (rows,) a number for each worker's pool; `pool_names` has them by number.
        heard_s: (rows,) when the last heartbeat came, router's monotonic seconds.
        tried_s: (rows,) when it last got a request of ours.
        staked: rows that have something at stake.
    """

    def __init__(self, model: str, bands: int) -> None:
        self.model = model
        self.serving: list[Serving] = []
        self.pool_names: list[str] = []
        self.staked = 0
        self._pool_numbers: dict[str, int] = {}
        self._bands = bands
        self._all_cells = np.zeros((len(_NAMES) + 2 * bands, _FIRST_CAPACITY), np.float32)
        self._times_s = np.zeros((2, _FIRST_CAPACITY))
        self._numbers = np.zeros((2, _FIRST_CAPACITY), np.intp)
        self._stakes = [False] * _FIRST_CAPACITY
        self._resize()

    def __len__(self) -> int:
        return len(self.serving)

    def add(self, serving: "Serving") -> int:
        """A new row; its number. It is zeros until it is written."""
        row = len(self.serving)
        if row == self._all_cells.shape[1]:
            self._all_cells = np.concatenate((self._all_cells, np.zeros_like(self._all_cells)), axis=1)
            self._times_s = np.concatenate((self._times_s, np.zeros_like(self._times_s)), axis=1)
            self._numbers = np.concatenate((self._numbers, np.zeros_like(self._numbers)), axis=1)
            self._stakes += [False] * row
        self._all_cells[:, row] = 0.0
        self._times_s[:, row] = 0.0
        self.serving.append(serving)
        self._resize()
        self.replace(row, serving)
        return row

    def replace(self, row: int, serving: "Serving") -> None:
        """Says anew who a row is."""
        self.serving[row] = serving
        pool = serving.worker.pool
        number = self._pool_numbers.get(pool)
        if number is None:
            number = self._pool_numbers[pool] = len(self.pool_names)
            self.pool_names.append(pool)
        self._numbers[:, row] = serving.worker.slot, number

    def remove(self, row: int) -> None:
        """Takes a row out; the last row takes its number."""
        self._stake(row, False)
        moved = self.serving.pop()
        last = len(self.serving)
        if row < last:
            for each in (self._all_cells, self._times_s, self._numbers):
                each[:, row] = each[:, last]
            self.serving[row] = moved
            self._stakes[row], self._stakes[last] = self._stakes[last], False
            moved.row = row
        self._resize()

    def write(self, row: int, heard_s: float, tried_s: float, values: Iterable[float], *, staked: bool) -> None:
        """Sets a whole row.

        Args:
            values: the columns in their order, then the bands of `at_stake_usd`, then of `late_before`.
            staked: whether any of `at_stake_usd` is above 0.
        """
        self._all_cells[:, row] = tuple(values)
        self._times_s[:, row] = heard_s, tried_s
        self._stake(row, staked)

    def _stake(self, row: int, staked: bool) -> None:
        self.staked += staked - self._stakes[row]
        self._stakes[row] = staked

    def _resize(self) -> None:
        rows = len(self.serving)
        self.bind(self._all_cells[:, :rows], self._bands)
        self.heard_s, self.tried_s = self._times_s[:, :rows]
        self.slots, self.pools = self._numbers[:, :rows]

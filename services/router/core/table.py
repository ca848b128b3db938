"""The workers of one model as columns of numbers, so that one request is scored against all of them in one go.

A row is one worker; a column is one figure of it that does not depend on the request, with the worker's slowness, load
and plan worked in already: `serving.py` derives a row when something changes, `policy` reads columns. Rows are dense:
one that goes is replaced by the last.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a Serving knows its table
    from services.router.core.serving import Serving

Floats = NDArray[np.float64]

_FIRST_CAPACITY: Final = 16


class Columns:
    """Every column, each (rows,) float64; seconds are the worker's own, slowness included.

    Attributes:
        room_tokens: the longest prompt taken now, plus one; 0 where new requests are not taken.
        heard_s: when the last heartbeat came, router's monotonic seconds.
        linked: 1 where the session to the worker stands.
        tried_s: when it last got a request of ours.
        chunks_per_token, chunk_overhead_s, token_s, attended_s: of a prefill (see `mesh/timing`).
        riding_s: what a chunk takes longer for the sequences that decode meanwhile.
        queue_s: until a request that came now would be computed, batch slots and KV cache being free.
        short_slots: requests ahead that no batch slot is free for, per slot.
        short_kv_tokens: KV cache that is in use or spoken for, beyond the capacity; negative where some is free.
        step_s, step_s_per_kv_token: of a decode step with one more sequence, and for each KV token that it brings.
        weights_s, sequence_s: the part of a step that all its sequences share, and what each of them adds.
        batch, max_batch: sequences of a step that it joins, and the most.
        kv_capacity_tokens: of the KV cache.
        stretch: how much prefills that keep arriving stretch the time between two tokens, >= 1.
        there_tpot_s: seconds per token of those who are there, as it is.
        usd_per_s: rate, energy and shadow price of a device-second.
    """

    room_tokens: Floats
    heard_s: Floats
    linked: Floats
    tried_s: Floats
    chunks_per_token: Floats
    chunk_overhead_s: Floats
    token_s: Floats
    attended_s: Floats
    riding_s: Floats
    queue_s: Floats
    short_slots: Floats
    short_kv_tokens: Floats
    step_s: Floats
    step_s_per_kv_token: Floats
    weights_s: Floats
    sequence_s: Floats
    batch: Floats
    max_batch: Floats
    kv_capacity_tokens: Floats
    stretch: Floats
    there_tpot_s: Floats
    usd_per_s: Floats


_NAMES: Final = tuple(Columns.__annotations__)


class ModelTable(Columns):
    """One model's workers.

    Attributes:
        at_stake_usd: (bands, rows) what the TPOT promises of the requests running there are worth, by band of promise.
        late_before: (bands, rows) how probably they are late as it is.
        serving: who each row is, in row order.
    """

    def __init__(self, model: str, bands: int) -> None:
        self.model = model
        self.serving: list[Serving] = []
        self._cells = np.zeros((len(_NAMES) + 2 * bands, _FIRST_CAPACITY))
        self._bands = bands
        self._bind()

    def __len__(self) -> int:
        return len(self.serving)

    def add(self, serving: "Serving") -> int:
        """A new row; its number. It is zeros until it is written."""
        row = len(self.serving)
        if row == self._cells.shape[1]:
            self._cells = np.concatenate((self._cells, np.zeros_like(self._cells)), axis=1)
        self._cells[:, row] = 0.0
        self.serving.append(serving)
        self._bind()
        return row

    def remove(self, row: int) -> None:
        """Takes a row out; the last row takes its number."""
        moved = self.serving.pop()
        if row < len(self.serving):
            self._cells[:, row] = self._cells[:, len(self.serving)]
            self.serving[row] = moved
            moved.row = row
        self._bind()

    def write(self, row: int, values: Iterable[float]) -> None:
        """Sets a whole row: the columns in their order, then the bands of `at_stake_usd`, then of `late_before`."""
        self._cells[:, row] = tuple(values)

    def _bind(self) -> None:
        cells = self._cells[:, : len(self.serving)]
        for name, column in zip(_NAMES, cells, strict=False):
            setattr(self, name, column)
        self.at_stake_usd = cells[len(_NAMES) : len(_NAMES) + self._bands]
        self.late_before = cells[len(_NAMES) + self._bands :]

"""The workers of one model ranked for one request, by the formulas of `scores`, all of them in one go.

In: the model's table and the ask. Out: for each row its score and how soon it begins, in the table's own results. And
for one row that was picked, all that the formulas say of it, by the same machine code.
"""

from collections.abc import Collection, Sequence
from ctypes import addressof, c_float, sizeof
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from struct import Struct
from typing import Any, Final

import numpy as np

from services.router.core.fused import FUNCTIONS, Loop
from services.router.core.promises import Promises
from services.router.core.scores import ASKED, Ask, Terms, work_out
from services.router.core.table import ModelTable, Singles, figure_names

_AROUND: Final = ("must_take", "max_queue_s", "most_taken")  # of `Circumstances`
_UNBOUNDED: Final = 1e9


@dataclass(slots=True)
class Circumstances:
    """What beside scores decides whether a row is feasible.

    Attributes:
        prompt_tokens: that it must take.
        max_queue_s: a row that is predicted to queue the request longer is not feasible.
        heard_since_s: nor one that was not heard since.
        must_be_linked: nor, if so, one to which no session stands.
        excluded: rows that failed the request already.
        least_spare: above 0, nor one that would have less of its KV cache or of its batch slots left.
    """

    prompt_tokens: int
    max_queue_s: float
    heard_since_s: float
    must_be_linked: bool = False
    excluded: Collection[int] = ()
    least_spare: float = 0.0

    @property
    def most_taken(self) -> float:
        """Of a worker's KV cache and of its batch slots."""
        return 1.0 - self.least_spare if self.least_spare > 0 else _UNBOUNDED


def rank(table: ModelTable, ask: Ask, promises: Promises, around: Circumstances) -> None:
    """Works out the table's `usd`, infinite where a row is not feasible, and `soonest_s`."""
    table.write_cached(ask.cached, ask.prompt_tokens - 1)
    loop = ranking_loop(promises.band_tpots_s)
    given = (*ask.numbers(), around.prompt_tokens, around.max_queue_s, around.most_taken)
    loop(table.address, table.capacity, table.whole_rows, given, table.results_at)
    usd = table.usd
    if table.silent_since(around.heard_since_s):
        usd[table.heard_s < around.heard_since_s] = inf
    if around.must_be_linked:
        usd[table.linked == 0] = inf
    if ask.features:
        usd[~table.able(ask.features)] = inf
    if ask.confines:
        usd[~table.admitted(ask.confines)] = inf
    if around.excluded:
        usd[list(around.excluded)] = inf


@lru_cache
def ranking_loop(band_tpots_s: Sequence[float]) -> Loop:
    """The compiled score, infinite where the row does not take the request, and `Terms.soonest_s`.

    Compiling takes a tenth of a second, the first time.
    """

    def ranked(of: Any) -> tuple[Any, Any]:
        terms = work_out(of, band_tpots_s, FUNCTIONS)
        taken = FUNCTIONS.maximum(of.kv_tokens, 0.0) + FUNCTIONS.maximum(of.growth_tokens, 0.0) + of.length
        used = of.running + FUNCTIONS.maximum(of.waiting, 0.0) + 1
        full = (taken > of.most_taken * of.kv_capacity_tokens) | (used > of.most_taken * of.max_batch)
        closed = (of.room_tokens <= of.must_take) | (terms.queue_s > of.max_queue_s) | full
        return FUNCTIONS.where(closed, inf, terms.score_usd), terms.soonest_s

    return Loop(ranked, figure_names(len(band_tpots_s)), (*ASKED, *_AROUND))


class Outlook:
    """The terms of a request at one worker, in single precision, as its score was worked out: a tenth of what
    `scores.terms_of` takes."""

    def __init__(self, band_tpots_s: Sequence[float]) -> None:
        def told(of: Any) -> Terms:
            return work_out(of, band_tpots_s, FUNCTIONS)

        columns = figure_names(len(band_tpots_s))
        self._loop = Loop(told, columns, ASKED)
        self._figures = np.zeros(len(columns), np.float32)  # of the one worker; NumPy takes long to tell an address
        self._figures_at = self._figures.ctypes.data
        self._read = Struct(f"{len(Terms._fields)}f").unpack_from
        self._numbers = (c_float * len(Terms._fields))()
        start = addressof(self._numbers)
        self._results = [start + place * sizeof(c_float) for place in range(len(Terms._fields))]

    def of(self, figures: Singles, place: int, ask: Ask) -> Terms:
        """The terms at one candidate.

        Args:
            figures: (columns, candidates), one row of memory for each column.
        """
        self._figures[:] = figures[:, place]
        self._loop(self._figures_at, 1, 1, ask.numbers(), self._results)
        return Terms._make(self._read(self._numbers))


@lru_cache
def outlook(band_tpots_s: Sequence[float]) -> Outlook:
    """Compiled, as `ranking_loop` is."""
    return Outlook(band_tpots_s)

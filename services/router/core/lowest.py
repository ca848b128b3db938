"""The lowest of many numbers, in order: what NumPy does in several passes and calls, in one.

In: numbers in single precision. Out: the rows of the lowest, and these numbers; infinite ones, and what is no number,
are not among them. The few that are held stay sorted while the others pass by, of which most are above the highest
held: nothing is done about those.
"""

from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import cache
from typing import Final

import numpy as np

from services.router.core.fused import compiled

_LOWEST: Final = """
define i64 @lowest(ptr noalias readonly %numbers, i64 %count, i64 %most, ptr noalias %held, ptr noalias %rows) {
entry:
  %any = icmp sgt i64 %count, 0
  %last.place = sub i64 %most, 1
  %at.last = getelementptr float, ptr %held, i64 %last.place
  br i1 %any, label %each, label %end
each:  ; number; of those before it `length` are held; what is not below the limit is not one of the lowest
  %row = phi i64 [ 0, %entry ], [ %row.next, %next ]
  %length = phi i64 [ 0, %entry ], [ %length.next, %next ]
  %limit = phi float [ 0x7FF0000000000000, %entry ], [ %limit.next, %next ]
  %at.number = getelementptr float, ptr %numbers, i64 %row
  %number = load float, ptr %at.number
  %is.low = fcmp olt float %number, %limit
  br i1 %is.low, label %hold, label %next
hold:  ; it, in place of the highest where there is no room
  %is.full = icmp eq i64 %length, %most
  %one.more = add i64 %length, 1
  %length.held = select i1 %is.full, i64 %most, i64 %one.more
  %place.last = sub i64 %length.held, 1
  br label %seek
seek:  ; its place: those that are higher move up
  %place = phi i64 [ %place.last, %hold ], [ %place.before, %move ]
  %is.first = icmp eq i64 %place, 0
  br i1 %is.first, label %put, label %compare
compare:
  %place.before = sub i64 %place, 1
  %at.before = getelementptr float, ptr %held, i64 %place.before
  %before = load float, ptr %at.before
  %is.higher = fcmp ogt float %before, %number
  br i1 %is.higher, label %move, label %put
move:
  %at.moved = getelementptr float, ptr %held, i64 %place
  store float %before, ptr %at.moved
  %at.row.before = getelementptr i64, ptr %rows, i64 %place.before
  %row.before = load i64, ptr %at.row.before
  %at.row.moved = getelementptr i64, ptr %rows, i64 %place
  store i64 %row.before, ptr %at.row.moved
  br label %seek
put:
  %at.held = getelementptr float, ptr %held, i64 %place
  store float %number, ptr %at.held
  %at.row = getelementptr i64, ptr %rows, i64 %place
  store i64 %row, ptr %at.row
  %is.full.now = icmp eq i64 %length.held, %most
  %highest = load float, ptr %at.last
  %limit.held = select i1 %is.full.now, float %highest, float 0x7FF0000000000000
  br label %next
next:
  %length.next = phi i64 [ %length, %each ], [ %length.held, %put ]
  %limit.next = phi float [ %limit, %each ], [ %limit.held, %put ]
  %row.next = add nuw nsw i64 %row, 1
  %is.more = icmp slt i64 %row.next, %count
  br i1 %is.more, label %each, label %end
end:
  %found = phi i64 [ 0, %entry ], [ %length.next, %next ]
  ret i64 %found
}
"""
_CALL: Final = CFUNCTYPE(c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p)


class Lowest:
    """Finds the `most` lowest."""

    def __init__(self, most: int) -> None:
        self._code = compiled(_LOWEST)
        self._call = _CALL(self._code.get_function_address("lowest"))
        self._most = most
        self._held, self._rows = np.zeros(most, np.float32), np.zeros(most, np.int64)
        self._at = self._held.ctypes.data, self._rows.ctypes.data

    def __call__(self, address: int, count: int) -> tuple[list[int], list[float]]:
        """The rows of the lowest of `count` numbers at an address, the lowest first; and these numbers."""
        found = self._call(address, count, self._most, *self._at)
        return self._rows[:found].tolist(), self._held[:found].tolist()


@cache
def lowest(most: int) -> Lowest:
    """Compiled once."""
    return Lowest(most)

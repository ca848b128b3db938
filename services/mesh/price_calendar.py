"""Which price book is in force when, and which prices a request that was admitted then. Pure.

Two times are kept of a book: from when it is in force (*effective*), and when it was told (*recorded*). At a moment, of
the books that were recorded by then, the one that became effective last is in force; of two that are effective from the
same moment, the one recorded last: that is how a book is corrected.

A request is priced by the book that its router named when it let it in, however late its events come, and whatever is
told afterwards. Only a *re-rating* changes that: it says that what was admitted between two times is priced by the
books as they are known when it is recorded. So what prices a request follows from facts that stand in the streams,
whoever reads them, and in whatever order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.events import PriceBookOpened, PricesRerated
from services.mesh.price_book import PriceBook
from services.mesh.pricing import Pricing

_NO_END: Final = 1 << 62
_MOST_BOOKS: Final = 4096


@dataclass(frozen=True, slots=True)
class OpenedBook:
    """A book, from when it is in force, and when it was told; milliseconds since 1970."""

    book: PriceBook
    effective_unix_ms: int
    recorded_unix_ms: int

    @property
    def event(self) -> PriceBookOpened:
        return PriceBookOpened(
            label=self.book.label,
            body_json=self.book.model_dump_json(),
            first_unix_ms=self.effective_unix_ms,
            recorded_unix_ms=self.recorded_unix_ms,
        )

    @classmethod
    def of(cls, event: PriceBookOpened) -> "OpenedBook":
        """Raises ValueError: the body is no price book."""
        recorded_unix_ms = event.recorded_unix_ms or event.first_unix_ms
        return cls(PriceBook.model_validate_json(event.body_json), event.first_unix_ms, recorded_unix_ms)


@dataclass(frozen=True, slots=True)
class Rerating:
    """What was admitted from `from_unix_ms` on, and before `to_unix_ms` (0: no end), is priced as known at
    `recorded_unix_ms`."""

    rerating: str
    from_unix_ms: int
    to_unix_ms: int
    recorded_unix_ms: int

    def covers(self, unix_ms: int) -> bool:
        return self.from_unix_ms <= unix_ms < (self.to_unix_ms or _NO_END)

    @property
    def event(self) -> PricesRerated:
        return PricesRerated(
            rerating=self.rerating,
            from_unix_ms=self.from_unix_ms,
            to_unix_ms=self.to_unix_ms,
            recorded_unix_ms=self.recorded_unix_ms,
        )

    @classmethod
    def of(cls, event: PricesRerated) -> "Rerating":
        return cls(event.rerating, event.from_unix_ms, event.to_unix_ms, event.recorded_unix_ms)


class PriceCalendar:
    """All books and re-ratings that are known. May be read while another thread adds to it."""

    def __init__(self, first: PriceBook, opened: Iterable[OpenedBook] = (), reratings: Iterable[Rerating] = ()) -> None:
        """`first` is in force where no opened book is."""
        self._first = Pricing(first)
        self._by_label: dict[str, Pricing] = {self._first.label: self._first}
        self._opened: tuple[OpenedBook, ...] = ()
        self.reratings: tuple[Rerating, ...] = ()
        self._unsettled: frozenset[str] = frozenset()
        for each in opened:
            self.open(each)
        for rerating in reratings:
            self.rerate(rerating)

    @property
    def opened(self) -> Sequence[OpenedBook]:
        """In the order in which they become effective."""
        return self._opened

    def open(self, opened: OpenedBook) -> None:
        """Adds a book; one of a label that is known replaces it. Raises ValueError: there are `_MOST_BOOKS` others."""
        label = opened.book.label
        if len(self._opened) >= _MOST_BOOKS and label not in self._by_label:
            raise ValueError(f"{_MOST_BOOKS} price books are open, the most there may be; {label!r} is not taken in")
        known = self._by_label.get(label)
        if known is None or known.book != opened.book:
            self._by_label[label] = Pricing(opened.book)
        others = (each for each in self._opened if each.book.label != label)
        self._opened = tuple(
            sorted((*others, opened), key=lambda each: (each.effective_unix_ms, each.recorded_unix_ms))
        )

    def rerate(self, rerating: Rerating) -> None:
        """Adds a re-rating; the same one again changes nothing."""
        others = (each for each in self.reratings if each.rerating != rerating.rerating)
        self.reratings = tuple(sorted((*others, rerating), key=lambda each: (each.recorded_unix_ms, each.rerating)))

    def begin(self, rerating: Rerating) -> None:
        """Adds a re-rating that not all requests were settled under yet."""
        self._unsettled |= {rerating.rerating}
        self.rerate(rerating)

    def end(self, rerating: Rerating) -> None:
        self._unsettled -= {rerating.rerating}

    @property
    def settled(self) -> frozenset[str]:
        """The re-ratings that all requests were settled under."""
        return frozenset(each.rerating for each in self.reratings) - self._unsettled

    def rerated_by(self, admitted_unix_ms: int) -> Rerating | None:
        """The re-rating that decides what prices a request admitted then; None where its router does."""
        return next((each for each in reversed(self.reratings) if each.covers(admitted_unix_ms)), None)

    def pricing(self, label: str) -> Pricing | None:
        return self._by_label.get(label)

    def at(self, unix_ms: int, known_unix_ms: int = _NO_END) -> Pricing:
        """The book in force at a moment, by what was known at another."""
        for each in reversed(self._opened):
            if each.effective_unix_ms <= unix_ms and each.recorded_unix_ms <= known_unix_ms:
                return self._by_label[each.book.label]
        return self._by_label[self._opened[0].book.label] if self._opened else self._first

    def label_for(self, named: str, admitted_unix_ms: int) -> str:
        """What prices a request whose router named `named`; empty where none did and nothing re-rates it."""
        rerating = self.rerated_by(admitted_unix_ms)
        return named if rerating is None else self.at(admitted_unix_ms, rerating.recorded_unix_ms).label

"""Events and control messages to protobuf bytes and back: the only file that knows both the dataclasses of `events.py`
and the generated wire.

What comes is checked where it comes in: a name that is longer than any may be would be a key in every reader's tables.

A converter per class is prepared at import from the dataclass's fields; a field's value is copied as it is, a nested
dataclass by its own converter, a tuple as a repeated field; token entries are decoded as somebody asks for them. A test
holds the two sides' fields together.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from math import isfinite
from operator import attrgetter
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from services.mesh import events
from services.mesh.conventions import LONGEST_NAME
from services.mesh.entries import WireEntries
from services.mesh.events import (
    Control,
    ControlAnswered,
    Drain,
    Event,
    GapAnswered,
    GapRequested,
    LeaseAsked,
    LeaseGranted,
    MoveStreams,
)
from tokenworks.v1 import events_pb2, planning_pb2

_NO_TIME_UNIX_MS: Final = 1 << 47
_ACTIONS: Final[dict[str, type[Control]]] = {"drain": Drain, "move_streams": MoveStreams}
# Fields that are no names, nor keys anywhere: what people read.
_WORDS: Final = frozenset({"because", "body_json", "done", "evidence", "failed_because", "message", "refused", "what"})
_READ_LATE: Final = frozenset({events.TokenEntry, events.RequestLatency})  # many come, and few are looked at
T = TypeVar("T")
M = TypeVar("M", bound=Message)

# Nested classes first: a converter looks its fields' converters up when it is made.
MESSAGES: Final[dict[type, type[Message]]] = {
    events.Hold: events_pb2.Hold,
    events.Funding: events_pb2.Funding,
    events.TokenEntry: events_pb2.TokenEntry,
    events.TokensGenerated: events_pb2.TokensGenerated,
    events.RequestLatency: events_pb2.RequestLatency,
    events.StepSample: events_pb2.StepSample,
    events.LatencyObserved: events_pb2.LatencyObserved,
    events.RequestAdmitted: events_pb2.RequestAdmitted,
    events.RequestFinished: events_pb2.RequestFinished,
    events.WorkerHeartbeat: events_pb2.WorkerHeartbeat,
    events.PrefixesChanged: events_pb2.PrefixesChanged,
    events.PlacementEnded: events_pb2.PlacementEnded,
    events.PlacementsUsed: events_pb2.PlacementsUsed,
    events.PlacedAtWorker: events_pb2.PlacedAtWorker,
    events.TenantSpending: events_pb2.TenantSpending,
    events.PlacementsMade: events_pb2.PlacementsMade,
    events.RequestsAnswered: events_pb2.RequestsAnswered,
    events.CreditChanged: events_pb2.CreditChanged,
    events.BudgetTerms: events_pb2.BudgetTerms,
    events.BudgetsSet: events_pb2.BudgetsSet,
    events.BudgetReached: events_pb2.BudgetReached,
    events.CreditRecalled: events_pb2.CreditRecalled,
    events.PriceBookOpened: events_pb2.PriceBookOpened,
    events.PricesRerated: events_pb2.PricesRerated,
    events.DriftFound: events_pb2.DriftFound,
    events.RunawayFound: events_pb2.RunawayFound,
    events.SpendAnomalyFound: events_pb2.SpendAnomalyFound,
    events.WorkloadClass: planning_pb2.WorkloadClass,
    events.Share: planning_pb2.Share,
    events.TimingCoefficients: planning_pb2.TimingCoefficients,
    events.PoolPlan: planning_pb2.PoolPlan,
    events.Prediction: planning_pb2.Prediction,
    events.Evidence: planning_pb2.Evidence,
    events.PlanLimit: planning_pb2.PlanLimit,
    events.ReplicaTarget: planning_pb2.ReplicaTarget,
    events.RoutingPlan: planning_pb2.RoutingPlan,
    events.SequenceRange: events_pb2.SequenceRange,
    events.GapRequested: events_pb2.GapRequested,
    events.GapAnswered: events_pb2.GapAnswered,
    events.LeaseLine: events_pb2.LeaseLine,
    events.Unused: events_pb2.Unused,
    events.LeaseAsked: events_pb2.LeaseAsked,
    events.LeaseGrant: events_pb2.LeaseGrant,
    events.LeaseGranted: events_pb2.LeaseGranted,
    events.Drain: events_pb2.Drain,
    events.MoveStreams: events_pb2.MoveStreams,
    events.ControlAnswered: events_pb2.ControlAnswered,
}


class _Converter:
    """One class to and from its message."""

    def __init__(self, cls: type, message: type[Message], known: dict[type, "_Converter"]) -> None:
        self.message = message
        self.cls = cls
        hints = typing.get_type_hints(cls)
        self._names = tuple(field.name for field in dataclasses.fields(cls))
        self._values: Callable[[Any], tuple[Any, ...]] = (
            attrgetter(*self._names) if len(self._names) > 1 else lambda value: (getattr(value, self._names[0]),)
        )
        # Only what is not copied as it is: position of the field, towards the wire, and back.
        self._changed: list[tuple[int, Callable[[Any], Any], Callable[[Any], Any]]] = []
        for position, name in enumerate(self._names):
            hint = hints[name]
            if isinstance(hint, types.GenericAlias):
                nested = known.get(typing.get_args(hint)[0])
                self._changed.append((position, _each_to(nested), _each_from(nested)))
            elif hint in known:
                self._changed.append((position, known[hint].to_fields, known[hint].from_message))
        self._times = tuple(position for position, name in enumerate(self._names) if name.endswith("_unix_ms"))
        self._floats = tuple(position for position, name in enumerate(self._names) if hints[name] is float)
        self._texts = tuple(name for name in self._names if hints[name] is str and name not in _WORDS)
        self._lists = tuple(name for name in self._names if typing.get_args(hints[name])[:1] == (str,))
        self._parts: list[tuple[str, bool, _Converter]] = []  # and whether there are several
        for name in self._names:
            parts = typing.get_args(hints[name])
            if (nested := known.get(parts[0] if parts else hints[name])) is not None:
                self._parts.append((name, bool(parts), nested))

    def to_fields(self, value: Any) -> dict[str, Any]:
        """Arguments for the message's constructor, which takes dicts for nested messages."""
        values = self._values(value)
        if self._changed:
            converted = list(values)
            for position, to_wire, _ in self._changed:
                converted[position] = to_wire(converted[position])
            return dict(zip(self._names, converted, strict=True))
        return dict(zip(self._names, values, strict=True))

    def check_names(self, message: Message) -> None:
        """Raises ValueError: a name in the message is longer than `LONGEST_NAME`."""
        for name in self._texts:
            _check_length(self.cls, name, getattr(message, name))
        for name in self._lists:
            for each in getattr(message, name):
                _check_length(self.cls, name, each)
        for name, several, nested in self._parts:
            for part in getattr(message, name) if several else (getattr(message, name),):
                if part.ByteSize() > LONGEST_NAME:  # in fewer bytes there is no longer name
                    nested.check_names(part)

    def from_message(self, message: Message) -> Any:
        values = list(self._values(message))
        for position in self._times:
            if not 0 <= values[position] < _NO_TIME_UNIX_MS:
                values[position] = 0
        for position in self._floats:
            if not isfinite(values[position]):
                values[position] = 0.0
        for position, _, from_wire in self._changed:
            values[position] = from_wire(values[position])
        return self.cls(**dict(zip(self._names, values, strict=True)))


def _check_length(cls: type, name: str, value: str) -> None:
    if len(value) > LONGEST_NAME:
        raise ValueError(
            f"{cls.__name__}.{name} has {len(value)} characters, {value[:32]!r}…; a name has at most {LONGEST_NAME}"
        )


def _each_to(nested: _Converter | None) -> Callable[[Any], Any]:
    return list if nested is None else lambda values: [nested.to_fields(value) for value in values]


def _each_from(nested: _Converter | None) -> Callable[[Any], Any]:
    if nested is None:
        return tuple
    if nested.cls in _READ_LATE:
        return lambda messages: WireEntries(messages, nested.from_message)
    return lambda messages: tuple([nested.from_message(each) for each in messages])


def _converters() -> dict[type, _Converter]:
    known: dict[type, _Converter] = {}
    for cls, message in MESSAGES.items():
        known[cls] = _Converter(cls, message, known)
    return known


_CONVERTERS: Final = _converters()


def to_message(value: object) -> Message:
    """The protobuf message of an event, or of a part of one.

    Raises:
        ValueError: a field's value does not fit its wire type; the message names the class and the value.
        TypeError: `value` is of a class that has no wire form.
    """
    converter = _CONVERTERS.get(type(value))
    if converter is None:
        raise TypeError(f"{type(value).__name__} has no wire form; add it to codec.MESSAGES")
    try:
        return converter.message(**converter.to_fields(value))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{type(value).__name__} does not fit the wire: {error}") from error


def from_message(cls: type[T], message: Message) -> T:
    """The dataclass that `message` carries; `message` must be of the class's own message type."""
    converter = _CONVERTERS[cls]
    assert isinstance(message, converter.message), f"{cls.__name__} is not carried by {type(message).__name__}"
    decoded: T = converter.from_message(message)
    return decoded


def encode(event: Event) -> bytes:
    """The body of an event. Raises ValueError: a field's value does not fit its wire type."""
    return to_message(event).SerializeToString()


def decode(cls: type[T], body: bytes) -> T:
    """The event of class `cls` in `body`; fields that a newer sender added are ignored.

    Raises:
        ValueError: `body` is empty or is no message of that class, or a name in it is too long.
    """
    if not body:
        raise ValueError(f"an empty body is no {cls.__name__}")
    return _decoded(cls, body)


def encode_control(asked: Control) -> bytes:
    """The body of a request on `tw.control.<worker>`."""
    action: dict[str, Any] = {name: to_message(asked) for name, cls in _ACTIONS.items() if cls is type(asked)}
    return events_pb2.ControlRequested(**action).SerializeToString()


def decode_control(body: bytes) -> Control:
    """The action that a request on `tw.control.<worker>` asks for.

    Raises:
        ValueError: `body` is no ControlRequested, or its action is not one this version knows.
    """
    request = _parse(events_pb2.ControlRequested, body)
    action = request.WhichOneof("action")
    if action not in _ACTIONS:
        known = " or ".join(_ACTIONS)
        raise ValueError(f"the control request of {len(body)} bytes names no action that is known here; send {known}")
    part = getattr(request, action)
    _CONVERTERS[_ACTIONS[action]].check_names(part)
    return from_message(_ACTIONS[action], part)


def encode_answer(answer: ControlAnswered) -> bytes:
    """The body of a reply to a control request."""
    return to_message(answer).SerializeToString()


def encode_gap(gap: GapRequested | GapAnswered) -> bytes:
    """The body of a request on `tw.gaps.<publisher>`, or of the reply to it."""
    return to_message(gap).SerializeToString()


def decode_gap_request(body: bytes) -> GapRequested:
    """Raises ValueError: `body` is no GapRequested, or a range in it is none."""
    gap = _decoded(GapRequested, body)
    _check_ranges(gap.ranges)
    return gap


def decode_gap_answer(body: bytes) -> GapAnswered:
    """Raises ValueError: `body` is no GapAnswered, or a range in it is none."""
    answer = _decoded(GapAnswered, body)
    _check_ranges((*answer.sent_ranges, *answer.lacking))
    return answer


def _check_ranges(ranges: Iterable[events.SequenceRange]) -> None:
    for each in ranges:
        if not 1 <= each.first <= each.last < 1 << 63:
            raise ValueError(f"{each.first} to {each.last} is no range of sequence numbers, from 1 to 2**63 - 1")


def encode_lease(lease: LeaseAsked | LeaseGranted) -> bytes:
    """The body of a request on `tw.leases`, or of the reply to it."""
    return to_message(lease).SerializeToString()


def decode_lease_asked(body: bytes) -> LeaseAsked:
    """Raises ValueError: `body` is no LeaseAsked, or a name in it is too long."""
    return _decoded(LeaseAsked, body)


def decode_lease_granted(body: bytes) -> LeaseGranted:
    """Raises ValueError: `body` is no LeaseGranted."""
    return _decoded(LeaseGranted, body)


def decode_answer(body: bytes) -> ControlAnswered:
    """Raises ValueError: `body` is no ControlAnswered."""
    return _decoded(ControlAnswered, body)


def _decoded(cls: type[T], body: bytes) -> T:
    converter = _CONVERTERS[cls]
    message = _parse(converter.message, body)
    if len(body) > LONGEST_NAME:  # in fewer bytes there is no longer name
        converter.check_names(message)
    return from_message(cls, message)


def _parse(message: type[M], body: bytes) -> M:
    try:
        return message.FromString(body)
    except DecodeError as error:
        raise ValueError(f"{len(body)} bytes are no {message.__name__}: {error}") from error

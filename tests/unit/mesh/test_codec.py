"""The dataclasses and the wire say the same, and what is no event is told from one."""

import dataclasses
import math
import types
import typing

import pytest
from google.protobuf.message import Message
from hypothesis import assume, given
from hypothesis import strategies as st

from services.mesh import codec
from services.mesh.conventions import LONGEST_NAME
from services.mesh.events import (
    Control,
    ControlAnswered,
    Drain,
    LatencyObserved,
    MoveStreams,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.subjects import CHANNELS
from tests.unit.mesh.wire_strategies import wire_values
from tokenworks.v1 import events_pb2


@pytest.mark.parametrize("cls", codec.MESSAGES, ids=lambda cls: cls.__name__)
def test_a_dataclass_has_the_fields_of_its_message(cls: type) -> None:
    message = codec.MESSAGES[cls].DESCRIPTOR
    assert {field.name for field in dataclasses.fields(cls)} == set(message.fields_by_name)
    for name, hint in typing.get_type_hints(cls).items():
        field = message.fields_by_name[name]
        assert isinstance(hint, types.GenericAlias) == field.is_repeated, name
        inner = typing.get_args(hint)[0] if isinstance(hint, types.GenericAlias) else hint
        nested = codec.MESSAGES.get(inner)
        assert (nested.DESCRIPTOR if nested else None) is field.message_type, name


@given(st.sampled_from([channel.event for channel in CHANNELS]).flatmap(wire_values))
def test_every_event_comes_back_as_it_was(event: object) -> None:
    body = codec.to_message(event).SerializeToString()
    assume(body)  # an event that names nothing at all is none
    assert codec.decode(type(event), body) == event


@given(wire_values(Drain) | wire_values(MoveStreams), wire_values(ControlAnswered))
def test_control_comes_back_as_it_was(asked: Control, answer: ControlAnswered) -> None:
    assert codec.decode_control(codec.encode_control(asked)) == asked
    assert codec.decode_answer(codec.encode_answer(answer)) == answer


@given(st.sampled_from([channel.event for channel in CHANNELS]), st.binary(max_size=64))
def test_any_bytes_are_an_event_or_a_value_error_that_names_it(cls: type, body: bytes) -> None:
    said = ""
    try:
        assert isinstance(codec.decode(cls, body), cls)
    except ValueError as error:
        said = str(error)
    assert not said or cls.__name__ in said


def test_fields_of_a_newer_sender_are_passed_over() -> None:
    body = codec.encode(TokensGenerated(worker="w", pool="p", accelerator="a", entries=(), at_unix_ms=1))
    assert codec.decode(TokensGenerated, body + b"\xfa\x7f\x03new").worker == "w"


def test_numbers_that_are_none_are_read_as_nothing() -> None:
    samples = [events_pb2.StepSample(step_s=value) for value in (math.nan, math.inf, -math.inf, 0.5)]
    body = events_pb2.LatencyObserved(worker="w", steps=samples).SerializeToString()
    assert [step.step_s for step in codec.decode(LatencyObserved, body).steps] == [0.0, 0.0, 0.0, 0.5]


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="Drain does not fit the wire"):
        codec.to_message(Drain(grace_ms=-1))
    with pytest.raises(TypeError, match="object has no wire form"):
        codec.to_message(object())


def test_a_control_request_without_a_known_action_is_refused() -> None:
    for body in (b"", events_pb2.ControlRequested().SerializeToString(), b"\x7a\x02hi"):
        with pytest.raises(ValueError, match="names no action"):
            codec.decode_control(body)
    with pytest.raises(ValueError, match="ControlRequested"):
        codec.decode_control(b"\xff")


LONG = "n" * (LONGEST_NAME + 1)


@pytest.mark.parametrize(
    ("cls", "message", "field"),
    [
        (LatencyObserved, events_pb2.LatencyObserved(worker=LONG), "LatencyObserved.worker"),
        (WorkerHeartbeat, events_pb2.WorkerHeartbeat(worker="w", models=["m", LONG]), "WorkerHeartbeat.models"),
        (
            TokensGenerated,
            events_pb2.TokensGenerated(
                worker="w", entries=[events_pb2.TokenEntry(), events_pb2.TokenEntry(tenant=LONG)]
            ),
            "TokenEntry.tenant",
        ),
    ],
)
def test_a_name_longer_than_any_is_refused_with_its_length_and_the_limit(
    cls: type, message: Message, field: str
) -> None:
    with pytest.raises(ValueError, match=rf"{field} has 257 characters, 'n+'…; a name has at most 256"):
        codec.decode(cls, message.SerializeToString())


def test_every_way_into_a_reader_refuses_a_long_name() -> None:
    asked = events_pb2.ControlRequested(move_streams=events_pb2.MoveStreams(request_ids=[LONG]))
    with pytest.raises(ValueError, match=r"MoveStreams\.request_ids has 257"):
        codec.decode_control(asked.SerializeToString())
    with pytest.raises(ValueError, match=r"LeaseLine\.subject has 257"):
        codec.decode_lease_asked(
            events_pb2.LeaseAsked(holder="h", lines=[events_pb2.LeaseLine(subject=LONG)]).SerializeToString()
        )
    with pytest.raises(ValueError, match=r"GapRequested\.publisher has 257"):
        codec.decode_gap_request(events_pb2.GapRequested(publisher=LONG).SerializeToString())


def test_names_of_the_full_length_pass_in_any_script_and_words_may_be_longer() -> None:
    body = events_pb2.LatencyObserved(worker="\u6f22" * LONGEST_NAME).SerializeToString()
    assert codec.decode(LatencyObserved, body).worker == "\u6f22" * LONGEST_NAME
    failed = events_pb2.WorkerHeartbeat(worker="w", failed_because="why " * 1000).SerializeToString()
    assert codec.decode(WorkerHeartbeat, failed).failed_because == "why " * 1000

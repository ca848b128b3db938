"""Every event has one subject, on its own channel and in its stream; the reference is up to date."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh import events_reference
from services.mesh.subjects import (
    CHANNELS,
    STREAMS,
    Channel,
    channel_at,
    channel_of,
    control_subject,
    dead_subject,
    escape,
    subject_of,
)
from tests.unit.mesh.wire_strategies import wire_values

NAMES = st.text(st.characters(codec="utf-8"), max_size=20)


def _matches(subject: str, wildcard: str) -> bool:
    return re.fullmatch(re.escape(wildcard).replace(r"\*", r"[^.*> \t\r\n]+"), subject) is not None


@given(NAMES, NAMES)
def test_two_names_never_share_a_subject_token(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(NAMES)
def test_any_name_is_one_token_of_plain_characters(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_~-]+", escape(name))


@given(st.sampled_from([channel.event for channel in CHANNELS]).flatmap(wire_values))
def test_a_subject_belongs_to_its_channel_and_its_stream_and_to_no_other(event: object) -> None:
    channel = channel_of(event)  # type: ignore[arg-type]  # it is one of the events
    subject = subject_of(event)  # type: ignore[arg-type]
    assert channel_at(subject) is channel
    assert [each for each in CHANNELS if _matches(subject, each.wildcard)] == [channel]
    holding = [stream.name for stream in STREAMS if any(_matches(subject, each) for each in stream.subjects)]
    assert holding == ([channel.stream] if channel.stream else [])


@pytest.mark.parametrize("subject", ["", "tw", "tw.tokens.p", "tw.tokens.p.w.x", "tw.dead.x", "tw.control.w"])
def test_other_subjects_belong_to_no_channel(subject: str) -> None:
    assert channel_at(subject) is None


def test_dead_letters_have_a_bounded_stream() -> None:
    [dead] = [each for each in STREAMS if any(_matches(dead_subject("meter"), subject) for subject in each.subjects)]
    assert dead.max_bytes > 0
    assert not any(_matches(control_subject("w"), subject) for each in STREAMS for subject in each.subjects)


def test_streams_are_bounded() -> None:
    assert all(stream.max_bytes > 0 for stream in STREAMS)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
def test_the_reference_tells_of_every_channel(channel: Channel) -> None:
    text = events_reference.render()
    assert channel.template.replace("{", "<").replace("}", ">") in text
    assert channel.says in text


def test_the_committed_reference_is_the_generated_one() -> None:
    assert Path(events_reference.PATH).read_text(encoding="utf-8") == events_reference.render()

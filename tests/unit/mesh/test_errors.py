"""Every error has a face, and is the same error on the other side of the wire."""

import grpc
import pytest

from services.mesh import errors
from services.mesh.errors import FACES, PeerError, TokenworksError, face, from_reason


def _all(cls: type[TokenworksError]) -> list[type[TokenworksError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _all(child))]


EVERY = [cls for cls in _all(TokenworksError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_every_error_has_a_face_that_is_a_failure(cls: type[TokenworksError]) -> None:
    shape = face(cls("x"))
    assert grpc.StatusCode[shape.grpc] is not grpc.StatusCode.OK
    assert 400 <= shape.http < 600
    assert shape.openai


@pytest.mark.parametrize("cls", [cls for cls in EVERY if cls is not TokenworksError], ids=lambda cls: cls.__name__)
def test_an_error_is_raised_again_by_its_reason(cls: type[TokenworksError]) -> None:
    again = from_reason(cls("it broke").reason, "it broke", 2.5)
    assert (type(again), str(again), again.retry_after_s) == (cls, "it broke", 2.5)


def test_an_unknown_reason_is_a_peers_error() -> None:
    assert type(from_reason("FromTheFuture", "x")) is PeerError


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert all(cls.__name__ in errors.__doc__ for cls in EVERY)


def test_capacity_says_when_to_come_back_and_a_wrong_request_does_not() -> None:
    assert errors.QueueFull("x").retry_after_s == 1.0
    assert errors.InvalidSampling("x").retry_after_s is None
    assert FACES[errors.CreditExhausted].http == 402

"""Both databases that the books may be in."""

import secrets
from collections.abc import Callable
from itertools import count

import pytest

from tests.postgres import new_database

NewUrl = Callable[[], str]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewUrl:
    """Gives the URL of another empty database each time."""
    numbers = count(1)
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("books")
        return lambda: f"sqlite:///{folder}/{next(numbers)}.db"
    url, prefix = request.getfixturevalue("postgres"), secrets.token_hex(4)
    return lambda: new_database(url, f"books_{prefix}_{next(numbers)}")

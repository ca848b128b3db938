"""pytest's options for `test_engine.py`: which engine, and with which settings."""

import json
from importlib.metadata import entry_points

import pytest

from services.mesh.settings import ENGINES
from services.worker.contract.subject import plugged_in
from services.worker.engines import ENTRY_POINTS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tokenworks", "the contract of Tokenworks' engines")
    group.addoption("--engine", help="name of an engine: an entry point in tokenworks.engines, or one of ours")
    group.addoption("--engine-settings", default="{}", help="WorkerSettings that are not the default, as JSON")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tells the cases of `test_engine.py` which engine they are for."""
    from services.worker.contract.test_engine import TestEngine

    name = config.getoption("--engine")
    known = {*ENGINES, *entry_points(group=ENTRY_POINTS).names}
    if name not in known:
        raise pytest.UsageError(f"--engine {name!r} is not known; use one of: {', '.join(sorted(known))}")
    try:
        settings = json.loads(config.getoption("--engine-settings"))
    except ValueError as error:
        raise pytest.UsageError(f"--engine-settings is not JSON: {error}") from error
    TestEngine.subject = plugged_in(name, settings)

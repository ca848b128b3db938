"""The contract as one class: give it a `subject`, and pytest runs every case against it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from services.worker.contract.ending import Ending
from services.worker.contract.failing import Failing
from services.worker.contract.features import Features
from services.worker.contract.generation import Generation
from services.worker.contract.load import Load
from services.worker.contract.resuming import Resuming
from services.worker.contract.running import Running
from services.worker.contract.subject import Fresh, Subject


class EngineContract(Generation, Resuming, Ending, Load, Failing, Features):
    """All cases; a subclass of the name `Test…` says in `subject` which engine they are for."""

    subject: ClassVar[Subject]
    pytestmark: ClassVar = pytest.mark.asyncio(loop_scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def directory(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Of the engine's own, for all cases."""
        if why := _subject(request).unavailable():
            pytest.skip(why)
        return tmp_path_factory.mktemp("engine")

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def shared(cls, request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Running]:
        """One engine for the cases that leave it as they found it."""
        async with _subject(request).serve(directory) as running:
            yield running

    @pytest_asyncio.fixture(loop_scope="class")
    async def engine(self, shared: Running) -> AsyncIterator[Running]:
        """The shared engine, idle before and after."""
        yield shared
        await shared.settled()

    @pytest.fixture
    def fresh(self, request: pytest.FixtureRequest, directory: Path) -> Fresh:
        """An engine of the case's own, with changed settings."""
        subject = _subject(request)

        def serve(**changes: Any) -> AbstractAsyncContextManager[Running]:
            return subject.serve(directory, **changes)

        return serve

    @pytest.fixture
    def mortal(self, request: pytest.FixtureRequest, directory: Path) -> Fresh:
        """An engine of the case's own, whose process may be killed."""
        subject = _subject(request)

        def serve(**changes: Any) -> AbstractAsyncContextManager[Running]:
            return (subject.serve_alone or subject.serve)(directory, **changes)

        return serve


def _subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.cls.subject
    return found

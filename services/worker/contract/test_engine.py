"""All cases against the engine that `python -m services.worker.contract` names."""

from services.worker.contract.cases import EngineContract


class TestEngine(EngineContract):
    """`plugin.py` sets its `subject`."""

"""What every engine promises a worker (services/worker/contract), held by vLLM in the process."""

from services.worker.contract.cases import EngineContract
from tests.engines.conftest import VLLM


class TestVllm(EngineContract):
    subject = VLLM

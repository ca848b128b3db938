"""What every engine promises a worker (services/worker/contract), held by ours that run anywhere."""

from services.worker.contract.cases import EngineContract
from tests.contract.engine_subjects import LLAMACPP, OPENAI_LLAMACPP, OPENAI_PLAIN, SIMULATED


class TestSimulated(EngineContract):
    subject = SIMULATED


class TestLlamaCpp(EngineContract):
    subject = LLAMACPP


class TestLlamaCppServer(EngineContract):
    """Through the OpenAI engine, which finds out what it is."""

    subject = OPENAI_LLAMACPP


class TestPlainServer(EngineContract):
    """llama.cpp's again, asked for nothing beyond OpenAI's API."""

    subject = OPENAI_PLAIN

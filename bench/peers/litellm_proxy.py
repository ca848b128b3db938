"""LiteLLM's proxy (Python): one worker process, its default simple shuffle, no database."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.datapath.subject import HttpBackend
from bench.peers.peer import Environment, HttpPeer, Started, write_json

_MODEL: Final = "bench"  # of a model it knows by name it would load the tokenizer from a hub
_KEY: Final = f"sk-{secrets.token_hex(32)}"  # it refuses to start without one
_ENVIRONMENT: Final = Environment("litellm", ("litellm[proxy]",))


def _run(port: int, backends: Sequence[HttpBackend], folder: Path) -> Started:
    deployments = [
        {
            "model_name": _MODEL,
            "litellm_params": {"model": f"hosted_vllm/{_MODEL}", "api_base": f"{each.url}/v1", "api_key": "none"},
        }
        for each in backends
    ]
    # JSON is YAML.
    config = write_json(folder / "litellm.yaml", {"model_list": deployments, "litellm_settings": {"num_retries": 0}})
    command = [_ENVIRONMENT.program("litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_MASTER_KEY": _KEY,
    }
    return Started([*command, "--num_workers", "1"], environment, "/health/liveliness", _MODEL, _KEY)


PEER: Final = HttpPeer("LiteLLM proxy", "simple shuffle", _ENVIRONMENT.install, _run)

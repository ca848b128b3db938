"""Dynamo's backend without an engine, run in its environment: `python -m bench.peers.dynamo_worker --model FOLDER`.

In: tokenised requests from Dynamo's frontend. Out: token ids, one per step, all streams of a pace in one step, as
`bench/datapath/http_backend.py` does with text. `write_model` makes the folder: a tokenizer of a few words.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from bench.datapath.answers import TOKEN_TEXT
from bench.datapath.http_backend import CONTEXT_TOKENS, MODEL
from bench.datapath.pacing import Due, Steps

ENDPOINT: Final = "bench.backend.generate"
_UNKNOWN: Final = 0
_END: Final = 1
_TOKEN: Final = 2
_CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def write_model(folder: Path) -> None:
    """What Dynamo reads of a model: its tokenizer, chat template and context length."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": _UNKNOWN, "content": "<unk>", **special}, {"id": _END, "content": "</s>", **special}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {"<unk>": _UNKNOWN, "</s>": _END, TOKEN_TEXT.strip(): _TOKEN},
            "unk_token": "<unk>",
        },
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": 3,
        "eos_token_id": _END,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
    }
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": CONTEXT_TOKENS,
    }
    files = {"tokenizer.json": tokenizer, "config.json": config, "tokenizer_config.json": described}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


class Engine:
    """All streams of this worker, by the milliseconds of their steps."""

    def __init__(self) -> None:
        self._paces: dict[float, Steps[int]] = {}
        self._waiting: dict[int, asyncio.Queue[Due[int]]] = {}
        self._running: dict[float, asyncio.Task[None]] = {}
        self._made = 0

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        wanted = int((request.get("stop_conditions") or {}).get("max_tokens") or 16)
        step_ms = float((request.get("sampling_options") or {}).get("seed") or 0)
        steps = self._paces.setdefault(step_ms, Steps(step_ms))
        self._made += 1
        number = self._made
        waiting = self._waiting[number] = asyncio.Queue()
        steps.add(number, wanted)
        try:
            due = steps.first(number)
            if steps and step_ms not in self._running:
                self._running[step_ms] = asyncio.create_task(self._run(steps))
            while due is not None and not due.last:
                yield {"token_ids": [_TOKEN]}
                due = await waiting.get()
            yield {"token_ids": [_TOKEN], "finish_reason": "length"}
        finally:
            steps.remove(number)
            del self._waiting[number]

    async def _run(self, steps: Steps[int]) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while steps:
                await asyncio.sleep(max(0.0, steps.next_step_s(clock()) - clock()))
                for due in steps.step():
                    self._waiting[due.key].put_nowait(due)
        finally:
            del self._running[steps.step_ms]


async def serve(model: str) -> None:
    from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
    from dynamo.runtime import DistributedRuntime

    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(ENDPOINT)
    await register_model(ModelInput.Tokens, ModelType.Chat, endpoint, model, MODEL, worker_type=WorkerType.Aggregated)
    await endpoint.serve_endpoint(Engine().generate, graceful_shutdown=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    asyncio.run(serve(parser.parse_args().model))


if __name__ == "__main__":
    main()

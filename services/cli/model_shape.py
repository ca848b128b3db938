"""What of a model decides its speed, read from its own files, so that simulated accelerators can serve it too.

In: a model as a person names it: a directory with Hugging Face's `config.json`, a GGUF file, the name of a model on the
hub that was downloaded before, or a name in the catalogue. Out: a row for `[catalogue.models]`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.cli.gguf import read_gguf
from services.cli.output import CommandFailed
from services.mesh.accelerators import load_catalogue

Row = dict[str, Any]  # fields of `accelerators.ModelShape` but its key

STAND_IN: Final = "llama-3.1-8b"  # where nothing is known of a model, as the router assumes as well
_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1}


def model_name(model: str) -> str:
    """What the mesh calls a model that is given as a path: its last part, without `.gguf`; a name stays as it is."""
    path = Path(model)
    return path.resolve().name.removesuffix(".gguf") if model and path.exists() else model


def row_of(shape: str) -> Row:
    """The row of the model at `shape`: a directory, a GGUF file, a downloaded model's name, or the catalogue's name.

    Raises:
        CommandFailed: there is none there, or its files do not tell.
    """
    path = Path(shape)
    try:
        if path.is_dir() or (path := _downloaded(shape)).is_dir():
            return _of_config(path)
        if Path(shape).is_file():
            return _of_gguf(Path(shape))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandFailed(
            f"the shape of {shape} cannot be read: {error!r}; name one of the catalogue with --shape",
            reason="ModelShapeUnknown",
        ) from error
    known = load_catalogue().models
    if shape in known:
        found = known[shape]
        return {name: getattr(found, name) for name in found.__dataclass_fields__ if name != "key"}
    raise CommandFailed(
        f"{shape!r} is no directory with a config.json, no GGUF file, no downloaded model, and none of the catalogue's"
        f" ({', '.join(sorted(known))})",
        reason="ModelShapeUnknown",
    )


def is_known(shape: str) -> bool:
    """Whether `row_of` finds files or a row for it."""
    return Path(shape).exists() or _downloaded(shape).is_dir() or shape in load_catalogue().models


def _downloaded(name: str) -> Path:
    """Where the hub's client keeps the newest snapshot of a model; a path that does not exist where it does not."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    kept = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}" / "snapshots"
    found = sorted(kept.glob("*/config.json"), key=lambda each: each.stat().st_mtime)
    return found[-1].parent if found else kept / "none"


def _of_config(directory: Path) -> Row:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}  # of models that see as well
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    layers, kv_heads = int(config["num_hidden_layers"]), int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    width = _BYTES.get(str(config.get("torch_dtype") or config.get("dtype")), 2)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    return {
        "parameters": _weights(directory, width) or _estimated(config, layers, attention),
        "layers": layers,
        "hidden": hidden,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "weight_bytes_per_parameter": width,
        "kv_bytes_per_value": 2,
        "context_tokens": int(config.get("max_position_embeddings") or 4096),
        "source": "its config.json",
    }


def _weights(directory: Path, width: int) -> int:
    """Parameters by the size of the weights on disk; 0 where they are not there."""
    return sum(each.stat().st_size for each in directory.glob("*.safetensors")) // width


def _estimated(config: Mapping[str, Any], layers: int, attention: int) -> int:
    """Parameters of a decoder with gated feed-forward layers, as nearly all of them are built.

    Args:
        attention: parameters of one layer's attention.
    """
    hidden = int(config["hidden_size"])
    feed_forward = 3 * hidden * int(config.get("intermediate_size") or 4 * hidden)
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    vocabulary = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + feed_forward * experts) + vocabulary


def _of_gguf(path: Path) -> Row:
    gguf = read_gguf(path)
    kind = gguf.metadata["general.architecture"]

    def said(name: str) -> int:
        return int(gguf.metadata[f"{kind}.{name}"])

    hidden, heads = said("embedding_length"), said("attention.head_count")
    head_dim = int(gguf.metadata.get(f"{kind}.attention.key_length") or hidden // heads)
    return {
        "parameters": gguf.parameters,
        "layers": said("block_count"),
        "hidden": hidden,
        "kv_heads": int(gguf.metadata.get(f"{kind}.attention.head_count_kv") or heads),
        "head_dim": head_dim,
        "weight_bytes_per_parameter": path.stat().st_size / max(1, gguf.parameters),
        "kv_bytes_per_value": 2,
        "context_tokens": said("context_length"),
        "source": "its GGUF file",
    }

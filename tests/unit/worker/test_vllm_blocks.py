"""vLLM's KV events, read."""

from dataclasses import dataclass

from services.worker.engine import BlockChange, BlockKind
from services.worker.engines.vllm_blocks import block_changes


@dataclass
class BlockStored:
    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    medium: str | None = "GPU"
    lora_name: str | None = None
    group_idx: int | None = 0


@dataclass
class BlockRemoved:
    block_hashes: list[bytes]
    medium: str | None = "GPU"
    group_idx: int | None = 0


@dataclass
class AllBlocksCleared:
    pass


def test_changes_are_told_in_order() -> None:
    events = [BlockStored([b"a", b"b"], None, [1, 2, 3, 4], 2), BlockRemoved([b"a"]), AllBlocksCleared()]
    assert block_changes(events) == [
        BlockChange(kind=BlockKind.STORED, hashes=(b"a", b"b"), token_ids=(1, 2, 3, 4), block_tokens=2),
        BlockChange(kind=BlockKind.REMOVED, hashes=(b"a",)),
        BlockChange(kind=BlockKind.CLEARED),
    ]


def test_slower_tiers_other_groups_of_layers_and_adapters_are_left_out() -> None:
    events = [
        BlockStored([b"a"], None, [1, 2], 2, medium="CPU"),
        BlockStored([b"a"], None, [1, 2], 2, group_idx=1),
        BlockStored([b"a"], None, [1, 2], 2, lora_name="adapter"),
        BlockRemoved([b"a"], medium="CPU"),
        BlockRemoved([b"a"], group_idx=1),
    ]
    assert block_changes(events) == []


def test_engine_that_names_neither_medium_nor_group_is_read() -> None:
    (change,) = block_changes([BlockStored([b"b"], b"a", [1, 2], 2, medium=None, group_idx=None)])
    assert change.parent == b"a"

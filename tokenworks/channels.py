"""Channels kept warm: one per address, shared by all calls to it, so that a call costs no connection.

In: addresses. Out: channels, each to be given back once for every time it was taken. At most `most` are kept, those in
use always; beyond it the one unused for longest is closed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # an attempt to connect takes no longer either
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(slots=True)
class _Kept:
    channel: grpc.aio.Channel
    users: int = 0


class Channels:
    """Make it inside the event loop that uses it."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one used last is last
        self._closing: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, address: str) -> grpc.aio.Channel:
        """The channel to `host:port`; give it back when the call is over."""
        kept = self._kept.get(address)
        if kept is None:
            kept = self._kept[address] = _Kept(grpc.aio.insecure_channel(address, options=_OPTIONS))
            kept.users = 1
            self._close_unused()
        else:
            kept.users += 1
            self._kept.move_to_end(address)
        return kept.channel

    def give_back(self, address: str) -> None:
        kept = self._kept.get(address)
        if kept is not None:
            kept.users -= 1
            self._close_unused()

    async def close(self) -> None:
        """Closes all; calls that still run are cancelled."""
        kept, self._kept = list(self._kept.values()), OrderedDict()
        await asyncio.gather(*(each.channel.close(None) for each in kept), *self._closing)

    def _close_unused(self) -> None:
        surplus = len(self._kept) - self._most
        if surplus <= 0:
            return
        for address in [address for address, kept in self._kept.items() if kept.users == 0][:surplus]:
            closing = asyncio.get_running_loop().create_task(self._kept.pop(address).channel.close(None))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def router_channel(address: str) -> grpc.aio.Channel:
    """A channel of its own, for a router: it lives as long as its client."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


async def connected(channel: grpc.aio.Channel, within_s: float) -> bool:
    """Whether a channel stands, or comes to stand within that time; False at once when an attempt fails."""
    waiting = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
    state = channel.get_state(try_to_connect=True)
    try:
        async with asyncio.timeout(within_s):
            while state in waiting:
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


def addresses_of(address: str | Sequence[str]) -> tuple[str, ...]:
    """One or several addresses. Raises ValueError: there is none."""
    addresses = (address,) if isinstance(address, str) else tuple(address)
    if not addresses or not all(addresses):
        raise ValueError(f"address {address!r} must be host:port of a router, or several of them")
    return addresses

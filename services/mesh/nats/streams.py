"""What a NATS server keeps for the mesh, made as `subjects.py` says: streams at every connection, a durable reader's
consumer at every start of its reading. What is there already is changed where it differs; what cannot be changed is
named.
"""

from collections.abc import Sequence
from typing import Any, Final

import nats.js.errors
from nats.js import JetStreamContext, api

from services.mesh.errors import SettingInvalid
from services.mesh.settings import NatsSettings
from services.mesh.subjects import DUPLICATE_WINDOW_S, Channel, Stream, consumer_of

_EPHEMERAL_S: Final = 60.0  # a watch's consumer that nobody reads is gone after this
_REPLICAS_NEED_CLUSTER: Final = 10074  # JetStream's error codes
_UPDATE_IMPOSSIBLE: Final = 10052
_CONSUMER_CANNOT_CHANGE: Final = 10012


async def reconcile_stream(js: JetStreamContext, stream: Stream, settings: NatsSettings) -> None:
    """Makes the stream as the table says.

    Raises:
        SettingInvalid: the server cannot have it so, whatever the time.
        nats.js.errors.APIError: not now.
    """
    wanted: dict[str, Any] = {
        "subjects": list(stream.subjects),
        "storage": api.StorageType.FILE if stream.file else api.StorageType.MEMORY,
        "retention": api.RetentionPolicy.LIMITS,
        "discard": api.DiscardPolicy.OLD,
        "max_age": stream.max_age_s,
        "max_bytes": stream.max_bytes,
        "max_msgs_per_subject": 1 if stream.last_per_subject else -1,
        "num_replicas": settings.replicas,
        "duplicate_window": DUPLICATE_WINDOW_S,
    }
    if settings.placement_tags:
        wanted["placement"] = api.Placement(tags=list(settings.placement_tags))
    try:
        try:
            found = (await js.stream_info(stream.name)).config
        except nats.js.errors.NotFoundError:
            found = (await js.add_stream(api.StreamConfig(name=stream.name, **wanted))).config
        # Who connects with fewer in its settings, a command say, must not take copies away.
        wanted["num_replicas"] = max(settings.replicas, found.num_replicas or 1)
        if any(getattr(found, name) != value for name, value in wanted.items()):
            await js.update_stream(found, **wanted)
    except nats.js.errors.APIError as error:
        if error.err_code == _REPLICAS_NEED_CLUSTER:
            raise SettingInvalid(
                f"nats.replicas = {settings.replicas}: this server is not one of a cluster; use 1"
            ) from error
        if error.err_code == _UPDATE_IMPOSSIBLE:
            raise SettingInvalid(
                f"stream {stream.name} cannot be made what this version needs: {error.description}; drain it, then"
                " delete it, and it is made anew"
            ) from error
        raise


async def reconcile_consumer(
    js: JetStreamContext, stream: str, channels: Sequence[Channel], durable: str, after_sequence: int = 0
) -> None:
    """Makes the consumer of a durable reader as the table says; one that is there keeps its place.

    Args:
        after_sequence: where a new one begins.

    Raises:
        SettingInvalid: the server has one of that name which cannot be changed to this.
        nats.js.errors.APIError: not now.
    """
    wanted = consumer_of(durable)
    config = api.ConsumerConfig(
        name=durable,
        durable_name=durable,
        filter_subjects=[channel.wildcard for channel in channels],
        deliver_policy=api.DeliverPolicy.ALL,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=wanted.ack_wait_s,
        max_ack_pending=wanted.max_ack_pending,
        # The server would drop what it has delivered that often, without a word: the reader puts it aside instead.
        max_deliver=-1,
    )
    try:
        try:
            found = (await js.consumer_info(stream, durable)).config
        except nats.js.errors.NotFoundError:
            if after_sequence:
                config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, after_sequence + 1
        else:
            if found.deliver_policy == api.DeliverPolicy.BY_START_SEQUENCE:  # where it began cannot be changed any more
                config.deliver_policy, config.opt_start_seq = found.deliver_policy, found.opt_start_seq
        await js.add_consumer(stream, config)
    except nats.js.errors.APIError as error:
        if error.err_code != _CONSUMER_CANNOT_CHANGE:
            raise
        raise SettingInvalid(
            f"consumer {durable} of stream {stream} cannot be made what this version needs: {error.description};"
            f" delete it once everything in the stream is handled, and it is made anew"
        ) from error


def ephemeral(name: str, subjects: Sequence[str], policy: api.DeliverPolicy, start: int = 0) -> api.ConsumerConfig:
    """A consumer that acks nothing and goes with its reader; `start`: for BY_START_SEQUENCE."""
    return api.ConsumerConfig(
        name=name,
        filter_subjects=list(subjects),
        deliver_policy=policy,
        opt_start_seq=start or None,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=_EPHEMERAL_S,
        num_replicas=1,
        mem_storage=True,
    )

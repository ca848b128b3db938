"""Writes docs/events.md from the table in subjects.py; with `--check` it compares."""

import dataclasses
import sys
from pathlib import Path
from typing import Final

from services.mesh.partitions import PARTITIONS
from services.mesh.subjects import (
    CHANNELS,
    CONTROL_TEMPLATE,
    DEAD_TEMPLATE,
    GAPS_TEMPLATE,
    LEASES_TEMPLATE,
    STREAMS,
)

PATH: Final = Path(__file__).parents[2] / "docs" / "events.md"


def render() -> str:
    """The reference as Markdown."""
    lines = [
        "# Events",
        "",
        "Generated from `services/mesh/subjects.py` by `python -m services.mesh.events_reference`; do not edit.",
        "",
        "Every message has a protobuf body (`protos/tokenworks/v1/events.proto`, `planning.proto`) and these headers:",
        "`Nats-Msg-Id` = `publisher:epoch:sequence` (numbered per channel, from 1, without gaps), `traceparent` (W3C),",
        "and CloudEvents' `ce-id`, `ce-source`, `ce-type`, `ce-time`, `ce-specversion`. In subjects, characters that",
        "NATS gives a meaning to are escaped as `~xx` (hex).",
        "",
        "| subject | event | stream | delivery | published by | read by |",
        "|---|---|---|---|---|---|",
    ]
    for channel in CHANNELS:
        subject = channel.template.replace("{", "<").replace("}", ">")
        lines.append(
            f"| `{subject}` | {channel.event.__name__} | {channel.stream or 'none'} | {channel.delivery} "
            f"| {', '.join(channel.publishers)} | {', '.join(channel.readers)} |"
        )
    control, gaps, dead, leases = (
        each.replace("{", "<").replace("}", ">")
        for each in (CONTROL_TEMPLATE, GAPS_TEMPLATE, DEAD_TEMPLATE, LEASES_TEMPLATE)
    )
    lines += [
        "",
        f"`{control}` takes requests (`ControlRequested`) and answers `ControlAnswered`; `{gaps}` takes",
        "`GapRequested`, has the publisher send what a reader lacks to its stream again, and answers `GapAnswered`.",
        f"What a durable reader cannot decode, or fails on again and again, goes to `{dead}` with the reason in the",
        "header `tw-reason`.",
        f"`{leases}`, of 0 to {PARTITIONS - 1}, takes `LeaseAsked` from holders of credit for the tenants of that",
        "partition (CRC-32 of the tenant's name, modulo), and answers `LeaseGranted`: the meter that books it does.",
        "",
        "## Streams",
        "",
        "| stream | subjects | storage | kept for | at most | keeps |",
        "|---|---|---|---|---|---|",
    ]
    for stream in STREAMS:
        age = f"{stream.max_age_s} s" if stream.max_age_s else "ever"
        lines.append(
            f"| {stream.name} | {', '.join(f'`{each}`' for each in stream.subjects)} "
            f"| {'file' if stream.file else 'memory'} | {age} | {stream.max_bytes >> 20} MiB "
            f"| {'the last per subject' if stream.last_per_subject else 'all'} |"
        )
    for channel in CHANNELS:
        lines += ["", f"## {channel.event.__name__}", "", channel.says, ""]
        lines += [f"- `{each.name}`" for each in dataclasses.fields(channel.event)]
    return "\n".join(lines) + "\n"


def main() -> None:
    text = render()
    if "--check" in sys.argv[1:]:
        if not PATH.is_file() or PATH.read_text(encoding="utf-8") != text:
            sys.exit(
                "docs/events.md differs from services/mesh/subjects.py: run python -m services.mesh.events_reference"
            )
        return
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

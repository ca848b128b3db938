"""What this machine's accelerators are, and what they draw.

`source.py` is the protocol that every vendor's library or tool is read by; each has a module here. `sources.py` knows
them all, and third parties' by the entry point `tokenworks.telemetry`. `detection.py` finds the accelerator that a
worker runs on; `power_meter.py` reads its watts, and splits its energy among the requests.
"""

"""The bus on NATS, and the servers that a mesh starts for itself. Only this package imports nats.

`bus.py` is the bus: it sends by `sending.py` and reads by `inflow.py`, over the connection that `links.py` keeps, from
streams that `streams.py` makes. `server.py` and `cluster.py` start servers of this machine.
"""

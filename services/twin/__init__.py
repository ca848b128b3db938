"""The mesh in numbers: traces of traffic, read and turned into requests."""

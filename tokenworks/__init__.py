"""Tokenworks: tokens from accelerators of any vendor, metered once, priced, and placed where they cost least.

This package is what a program imports to use a mesh: the client and the generated wire (`tokenworks.v1`).
"""

from tokenworks.client import Client
from tokenworks.errors import CallError, GenerateError
from tokenworks.stream import Generation, Piece, Result, Segment, TokenLogprob

__all__ = ["CallError", "Client", "GenerateError", "Generation", "Piece", "Result", "Segment", "TokenLogprob"]

__version__ = "0.1.0"

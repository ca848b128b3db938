"""Tokenworks: tokens from accelerators of any vendor, metered once, priced, and placed where they cost least.

This package is what a program imports to use a mesh: the client and the generated wire (`tokenworks.v1`).
"""

__version__ = "0.1.0"

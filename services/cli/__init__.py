"""The command line: starts a mesh on this machine, and talks to any mesh as a client does."""

"""OpenAI's HTTP API as the mesh speaks it: bodies in, bodies and events out."""

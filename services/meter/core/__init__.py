"""Pure: events in, entries out. Nothing here waits, reads a clock or touches a file."""

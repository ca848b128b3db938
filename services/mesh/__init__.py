"""The fabric every service stands on; it knows no business rule."""

"""The pure part: events come in with the second they arrived at, plans and reasons to plan again go out."""

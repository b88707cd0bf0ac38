"""Cases that are not clean yet, by test id, with what is wrong."""

REASONS: dict[str, str] = {}

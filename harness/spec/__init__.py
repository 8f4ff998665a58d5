"""Everything a command can say, typed and checked before the first second of work; no torch."""

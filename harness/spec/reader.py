"""What can be said wrong: one error for every file and every command line."""

from __future__ import annotations


class UsageError(ValueError):
    """Something said in a file or on a command line that cannot be; the message names place, value and way out."""

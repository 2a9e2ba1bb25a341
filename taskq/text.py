"""Text that anybody may have written, for logs and terminals: no control character of it gets there."""

from __future__ import annotations


def printable(text: str, kept: str = "") -> str:
    """Text in one line, with everything escaped that is not to be seen, but what is `kept`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else ascii(one)[1:-1] for one in text)

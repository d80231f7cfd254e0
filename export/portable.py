"""Reports without the paths of the machine that wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w.$}~/\\:-])(?:~[\w-]*)?/[^\s\"',;()\[\]{}]+")
"""A path from the root or from a home folder, where a word may begin."""


def portable_text(text: str, paths: Iterable[Path] = ()) -> str:
    """Replace every absolute path in a text by its last part.

    Args:
        text: Any text.
        paths: Paths that are known to be in it; they may hold spaces, and relative ones are
            shortened too.
    """
    spellings = {
        str(given): given.name or "." for path in paths for given in (path, path.absolute())
    }
    for spelling in sorted(spellings, key=len, reverse=True):
        if "/" in spelling:
            text = text.replace(spelling, spellings[spelling])
    return _ABSOLUTE.sub(lambda match: PurePosixPath(match.group()).name or "/", text)


def portable(value: Any, paths: Iterable[Path] = ()) -> Any:
    """Do the same for all texts inside nested JSON types, keys included."""
    known = list(paths)
    if isinstance(value, str):
        return portable_text(value, known)
    if isinstance(value, Mapping):
        return {portable(str(key), known): portable(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, known) for item in value]
    return value

"""What was found out about a large data set, kept from one run to the next.

A cache is a .npz file of plain arrays in the user's own cache folder. Reading one executes nothing;
one that is damaged, foreign or of another version is passed over and written anew. Its name holds
the sha256 of the annotation file, so that it cannot outlive a change of it.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array
from numpy.typing import NDArray

CACHE_VERSION = 1
KEPT_FILES = 16
"""Caches that are kept; of more, those not read for longest are deleted."""

_SUFFIX = ".npz"


def cache_folder() -> Path:
    """Return BOXSEG_CACHE if that is set, else the folder boxseg in the user's cache."""
    named = os.environ.get("BOXSEG_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "boxseg"


def cache_file(sha256: str, root: Path) -> Path:
    """Return where the cache of an annotation file with its folder of images is or would be."""
    place = hashlib.sha256(str(root.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / f"data-{sha256[:32]}-{place[:16]}{_SUFFIX}"


def read_cache(file: Path) -> dict[str, NDArray[Any]] | None:
    """Read a cache; None if there is none, or none that this version can use."""
    found: dict[str, NDArray[Any]] = {}
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = read_array(member, allow_pickle=False)
                    if member.read(1):  # reading to the end is what compares the checksum
                        return None
        os.utime(file)
    except Exception:  # foreign bytes raise nearly everything
        return None
    version = found.pop("version", None)
    if version is None or version.shape != () or version.dtype != np.int64:
        return None
    return found if int(version) == CACHE_VERSION else None


def write_cache(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a cache at once or not at all, and delete the oldest of too many.

    Raises:
        OSError: The folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            named: dict[str, Any] = {**arrays, "version": np.array(CACHE_VERSION, np.int64)}
            np.savez(stream, **named)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    kept = sorted(file.parent.glob(f"data-*{_SUFFIX}"), key=_age, reverse=True)
    for old in kept[KEPT_FILES:]:
        old.unlink(missing_ok=True)


def _age(file: Path) -> float:
    """Return when a cache was last read or written; 0 if another process just deleted it."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0

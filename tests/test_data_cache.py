"""What is kept of a data set: it comes back, or it is passed over, and it never runs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxseg.train import data_cache
from boxseg.train.data_cache import cache_file, cache_folder, read_cache, write_cache

ARRAYS: dict[str, Any] = {
    "a": np.arange(5000),
    "b": np.zeros((0, 4), np.float32),
    "c": np.array([True, False]),
}


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile",))


def test_arrays_come_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "data-x.npz"
    write_cache(file, ARRAYS)
    found = read_cache(file)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert [entry.name for entry in file.parent.iterdir()] == ["data-x.npz"]


def test_a_missing_and_a_foreign_file_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "data-x.npz"
    assert read_cache(file) is None
    for content in (b"", b"hello", b"PK\x03\x04", bytes(100)):
        file.write_bytes(content)
        assert read_cache(file) is None


def test_every_damaged_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "data-x.npz"
    write_cache(file, ARRAYS)
    whole = file.read_bytes()
    for position in range(0, len(whole), 331):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        found = read_cache(file)
        # names and times of a zip's members are not in its checksums
        if found is not None and found.keys() == ARRAYS.keys():
            for name, values in ARRAYS.items():
                np.testing.assert_array_equal(found[name], values)
    for length in range(0, len(whole), 1013):
        file.write_bytes(whole[:length])
        assert read_cache(file) is None


def test_a_hostile_file_is_passed_over_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data-x.npz"
    np.savez(file, version=np.array(1), a=np.array([Payload()], dtype=object))
    with zipfile.ZipFile(file) as archive:
        assert "a.npy" in archive.namelist()
    assert read_cache(file) is None
    np.save(tmp_path / "bare.npy", np.array([Payload()], dtype=object))
    assert read_cache(tmp_path / "bare.npy") is None
    assert not (tmp_path / "hostile").exists()


def test_another_version_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data-x.npz"
    monkeypatch.setattr(data_cache, "CACHE_VERSION", 99)
    write_cache(file, ARRAYS)
    monkeypatch.undo()
    assert read_cache(file) is None
    np.savez(file, **ARRAYS)
    assert read_cache(file) is None


def test_the_caches_read_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_cache, "KEPT_FILES", 2)
    (tmp_path / "letter.npz").write_text("dear")
    for number, name in enumerate("abc"):
        file = tmp_path / f"data-{name}.npz"
        write_cache(file, {})
        os.utime(file, (number, number))
        read_cache(tmp_path / "data-a.npz")  # is the newest again
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["data-a.npz", "data-c.npz", "letter.npz"]


def test_a_write_that_fails_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        write_cache(tmp_path / "data-x.npz", ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOXSEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "boxseg"
    monkeypatch.setenv("BOXSEG_CACHE", "elsewhere")
    assert cache_folder() == Path("elsewhere")
    monkeypatch.delenv("BOXSEG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "boxseg"


def test_file_and_folder_of_images_name_the_cache() -> None:
    names = {cache_file(key * 32, Path(root)) for key in ("ab", "cd") for root in ("one", "two")}
    assert len(names) == 4

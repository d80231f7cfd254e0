"""Model files: what comes back, and what is refused."""

import copy
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from boxseg.checkpoint import (
    load_model,
    model_payload,
    remove_torn_files,
    save_model,
    write_atomically,
)
from boxseg.config import ModelConfig
from boxseg.errors import FileMismatchError
from boxseg.student import Student


@pytest.fixture(scope="module")
def student() -> Student:
    return Student(
        ModelConfig(
            classes=("a",),
            category_ids=(4,),
            backbone="resnet18",
            fpn_channels=8,
            tower_channels=8,
            tower_depth=1,
            mask_branch_channels=8,
            mask_branch_depth=0,
        )
    )


COMPLETE: dict[str, Any] = {"format": "boxseg-model", "version": 1, "weights": "student"} | {
    "config": {},
    "state_dict": {},
    "metadata": {},
}


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile",))


def test_weights_and_config_come_back(student: Student, tmp_path: Path) -> None:
    save_model(tmp_path / "best.pt", student, metadata={"step": 3})
    loaded = load_model(tmp_path)
    assert loaded.config == student.config
    assert not loaded.training
    for name, value in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_run_folder_without_best_gives_last(student: Student, tmp_path: Path) -> None:
    save_model(tmp_path / "last.pt", student)
    assert load_model(tmp_path).config == student.config


def test_a_trainer_file_gives_its_model(student: Student, tmp_path: Path) -> None:
    write_atomically(
        tmp_path / "trainer.pt",
        {"format": "boxseg-trainer", "version": 1, "model": model_payload(student)},
    )
    assert load_model(tmp_path / "trainer.pt").config == student.config


def test_a_hostile_file_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Payload()}, tmp_path / "best.pt")
    with pytest.raises(FileMismatchError, match="holds more than tensors and plain values"):
        load_model(tmp_path / "best.pt")
    assert not Path("hostile").exists()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"model": {}}, "is not a boxseg model file"),
        ({"format": "boxseg-model", "version": 9}, "has format version 9, this boxseg reads 1"),
        ({"format": "boxseg-model", "version": 1}, "is incomplete: it holds no config"),
        (COMPLETE | {"weights": None}, "is incomplete: it holds no weights"),
        (COMPLETE, "config and weights do not fit"),
        (COMPLETE | {"weights": "best"}, "weights must be student or ema, got 'best'"),
        ({"format": "boxseg-trainer", "version": 1}, "holds no model"),
        ([1, 2], "is not a boxseg model file"),
    ],
)
def test_a_foreign_file_is_refused(payload: Any, message: str, tmp_path: Path) -> None:
    torch.save(payload, tmp_path / "best.pt")
    with pytest.raises(FileMismatchError, match=message):
        load_model(tmp_path / "best.pt")


def test_weights_of_another_network_are_refused(student: Student, tmp_path: Path) -> None:
    payload = model_payload(student)
    payload["state_dict"].pop("head.level_scales")
    torch.save(payload, tmp_path / "best.pt")
    with pytest.raises(FileMismatchError, match="config and weights do not fit"):
        load_model(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 2 * 64 convolutions of 4096 x 4096 x 3 x 3 numbers: 77 GB, were it built
        ({"tower_channels": 4096, "tower_depth": 64}, r"is \[8, 8, 3, 3\], the config asks for"),
        ({"tower_depth": 10**8}, r"model\.tower_depth must be an integer in 0\.\.64"),
        ({"tower_depth": 2}, "there is no tensor head"),
        ({"tower_depth": 0}, "the config has no place for head"),
        ({"classes": ["a", "b"], "category_ids": [4, 5]}, "the config asks for"),
    ],
)
def test_a_config_that_the_weights_do_not_fit_is_refused_before_it_is_built(
    student: Student, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    payload = model_payload(student)
    payload["config"] |= changes
    torch.save(payload, tmp_path / "best.pt")
    with pytest.raises(FileMismatchError, match=message) as caught:
        load_model(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    student: Student, tmp_path: Path, value: float
) -> None:
    broken = copy.deepcopy(student)  # the fixture serves the whole module
    with torch.no_grad():
        next(broken.parameters()).flatten()[1] = value
    save_model(tmp_path / "last.pt", broken, metadata={"step": 0})
    with pytest.raises(FileMismatchError, match=r"\.weight holds values that are not fin"):
        load_model(tmp_path / "last.pt")


def test_loading_a_model_draws_as_many_random_numbers_as_building_one(
    student: Student, tmp_path: Path
) -> None:
    save_model(tmp_path / "best.pt", student)
    torch.manual_seed(5)
    load_model(tmp_path / "best.pt")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    Student(student.config)
    assert drawn == torch.rand(1)


@pytest.mark.parametrize("supervision", [None, 4, [4], {"teacher": 5}])
def test_a_trainer_file_with_damaged_supervision_gives_its_student(
    student: Student, tmp_path: Path, supervision: Any
) -> None:
    model = model_payload(student)
    payload = {"format": "boxseg-trainer", "version": 1, "model": model}
    write_atomically(tmp_path / "trainer.pt", payload | {"supervision": supervision})
    assert load_model(tmp_path / "trainer.pt").config == student.config


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "best.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best/data.pkl", bytes(1 << 20))
    with pytest.raises(FileMismatchError, match="is a compressed archive, not a model file"):
        load_model(tmp_path / "best.pt")


@pytest.mark.filterwarnings("error")
def test_a_pickle_of_another_protocol_is_refused_in_silence(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(pickle.dumps(Payload(), protocol=4))
    with pytest.raises(FileMismatchError, match=r"best\.pt"):
        load_model(tmp_path / "best.pt")


@pytest.mark.parametrize("content", [b"\x80\x02.", b"0", b"PK\x03\x04", b"hello", bytes(64)])
def test_bytes_that_are_no_model_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(FileMismatchError, match=r"best\.pt"):
        load_model(tmp_path / "best.pt")


def test_truncated_empty_and_missing_files_are_refused(student: Student, tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    save_model(file, student)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(FileMismatchError, match="is damaged or not a model file"):
        load_model(file)
    file.write_bytes(b"")
    with pytest.raises(FileMismatchError, match="is damaged or not a model file"):
        load_model(file)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file or folder"):
        load_model(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileMismatchError, match=r"holds neither best\.pt nor last\.pt"):
        load_model(tmp_path / "empty")


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.pt"
    save_model(file, student)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(file, student)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_told_by_the_systems_own_words_and_the_old_file_stays(
    tmp_path: Path,
) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files")
    file = tmp_path / "last.pt"
    write_atomically(file, {"a": torch.arange(4)})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 2_000, 300_000, 900_000):  # in the head, in a tensor, near the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                write_atomically(file, {"a": [torch.zeros(25_000) for _ in range(10)]})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.filename == str(file)
        assert torch.load(file, weights_only=True)["a"].tolist() == [0, 1, 2, 3]
        assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = ["trainer.pt", "best.pt", "notes.trainer.pt.txt", ".hidden"]
    for name in [*kept, ".trainer.pt.a1b2c3", ".last.pt.x", ".best.pt._"]:
        (tmp_path / name).touch()
    remove_torn_files(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)

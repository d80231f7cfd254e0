"""Model files: the network's config and the one set of weights that ships."""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from boxseg.config import ModelConfig
from boxseg.errors import FileMismatchError
from boxseg.student import Student

MODEL_FORMAT = "boxseg-model"
TRAINER_FORMAT = "boxseg-trainer"
FORMAT_VERSION = 1

TRAINER_FILE = "trainer.pt"
"""Everything that a run needs to go on; has both sets of weights where there is a teacher."""

WEIGHTS = ("student", "ema")
"""Which weights a model file may hold."""

RUN_FILES = ("best.pt", "last.pt")
"""Model files of a run folder, in the order in which they are taken."""


def model_payload(
    student: Student, *, weights: str = "student", metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a model file holds.

    Args:
        student: The network.
        weights: Which weights these are, "student" or "ema".
        metadata: Anything of JSON types that describes the run (recipe, scores, licences).
    """
    return {
        "format": MODEL_FORMAT,
        "version": FORMAT_VERSION,
        "config": student.config.to_dict(),
        "weights": weights,
        "metadata": dict(metadata or {}),
        "state_dict": {
            name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()
        },
    }


def save_model(
    path: Path,
    student: Student,
    *,
    weights: str = "student",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model file; see `model_payload`."""
    write_atomically(path, model_payload(student, weights=weights, metadata=metadata))


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the system's error behind one of torch's writer, which speaks of positions instead."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_atomically(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a torch file so that `path` is the old file or the new one, never a part.

    Raises:
        OSError: with the system's reason and `path`, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        reason = _system_error(error)
        if reason is not None:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


def remove_torn_files(folder: Path) -> None:
    """Delete what killed processes left of files that they were writing."""
    for name in (*RUN_FILES, TRAINER_FILE):
        for torn in folder.glob(f".{name}.*"):
            torn.unlink(missing_ok=True)


def _refuse_compressed(path: Path, file: IO[bytes]) -> None:
    """Refuse archives that hold more than their size; torch stores, it never compresses."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch says what is wrong with it
    if any(entry.file_size > entry.compress_size for entry in entries):
        raise FileMismatchError(f"{path} is a compressed archive, not a model file")


def read_payload(path: Path) -> dict[str, Any]:
    """Read a model file or trainer.pt without executing anything from it.

    Raises:
        OSError: if the file is not there or may not be read.
        FileMismatchError: if the file is damaged, foreign or of another version.
    """
    with path.open("rb") as file:  # what the system says about a path is not about its content
        _refuse_compressed(path, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles that it refuses next
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileMismatchError(
            f"{path} holds more than tensors and plain values, so it was not loaded; "
            "boxseg reads files that boxseg train wrote"
        ) from error
    except Exception as error:  # unpickling foreign bytes raises nearly everything
        raise FileMismatchError(f"{path} is damaged or not a model file") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if found not in (MODEL_FORMAT, TRAINER_FORMAT):
        raise FileMismatchError(f"{path} is not a boxseg model file (best.pt, last.pt, trainer.pt)")
    if payload.get("version") != FORMAT_VERSION:
        raise FileMismatchError(
            f"{path} has format version {payload.get('version')!r}, "
            f"this boxseg reads {FORMAT_VERSION}"
        )
    checked: dict[str, Any] = payload
    return checked


def model_file(path: Path) -> Path:
    """Return the file to read: `path` itself, or best.pt, else last.pt, of a run folder.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        FileMismatchError: if the folder holds none.
    """
    if path.is_dir():
        for name in RUN_FILES:
            if (path / name).is_file():
                return path / name
        raise FileMismatchError(f"{path} holds neither {' nor '.join(RUN_FILES)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_file():
        raise FileMismatchError(f"{path} is neither a file nor a run folder")
    return path


def read_model_payload(path: Path, weights: str | None = None) -> dict[str, Any]:
    """Return the model payload of a run folder, a model file or a trainer.pt; see `find_model`."""
    return find_model(path, weights)[1]


def find_model(path: Path, weights: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the file that holds the wanted weights, and its model payload.

    Args:
        path: Run folder, model file or trainer.pt.
        weights: "student", "ema", or None for those that ship. A model file holds one set; the
            other is in trainer.pt, which a run folder has too.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        FileMismatchError: if it is none of our files, or has not got those weights.
    """
    file = model_file(path)
    payload = _checked_model(file, read_payload(file), weights)
    if weights is not None and payload["weights"] != weights:
        trainer = path / TRAINER_FILE
        if not (path.is_dir() and trainer.is_file()):
            raise FileMismatchError(
                f"{file} holds the weights {payload['weights']!r}, not {weights!r}; a run folder's "
                f"{TRAINER_FILE} has both where the recipe has a teacher"
            )
        file, payload = trainer, _checked_model(trainer, read_payload(trainer), weights)
        if payload["weights"] != weights:
            raise FileMismatchError(f"{trainer} has no weights {weights!r}: its run has no teacher")
    return file, payload


def _checked_model(file: Path, payload: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """Return the model in a payload; of a trainer.pt, the weights asked for or those that ship."""
    if payload["format"] == TRAINER_FORMAT:
        model = payload.get("model")
        if not isinstance(model, dict) or model.get("format") != MODEL_FORMAT:
            raise FileMismatchError(f"{file} holds no model")
        supervision = payload.get("supervision")
        teacher = supervision.get("teacher") if isinstance(supervision, dict) else None
        payload = model
        if isinstance(teacher, dict) and teacher.get("updates") and weights != "student":
            payload = {**model, "weights": "ema", "state_dict": teacher.get("network")}
    for key, kind in (("config", dict), ("state_dict", dict), ("metadata", dict), ("weights", str)):
        if not isinstance(payload.get(key), kind):
            raise FileMismatchError(f"{file} is incomplete: it holds no {key}")
    if payload["weights"] not in WEIGHTS:
        raise FileMismatchError(
            f"{file}: weights must be {' or '.join(WEIGHTS)}, got {payload['weights']!r}"
        )
    return payload


def _refuse_other_shapes(config: ModelConfig, state: Mapping[str, Any]) -> None:
    """Compare a config with weights before memory is taken for what the config claims.

    Raises:
        ValueError: with the first tensor that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        needed = Student(config).state_dict()
    for name, tensor in needed.items():
        found = state.get(name)
        if not isinstance(found, Tensor):
            raise ValueError(f"there is no tensor {name}")
        if found.shape != tensor.shape:
            raise ValueError(
                f"{name} is {list(found.shape)}, the config asks for {list(tensor.shape)}"
            )
    unknown = sorted(str(name) for name in set(state) - set(needed))
    if unknown:
        raise ValueError(f"the config has no place for {unknown[0]}")


def load_model(path: Path, weights: str | None = None) -> Student:
    """Return the network of a run folder, a model file or a trainer.pt, in eval mode, on the CPU.

    Args:
        path: Run folder or file.
        weights: See `read_model_payload`.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        FileMismatchError: if the file is damaged, foreign or inconsistent, or if a weight is not
            finite.
    """
    payload = read_model_payload(path, weights)
    try:
        config = ModelConfig.from_dict(payload["config"])
        _refuse_other_shapes(config, payload["state_dict"])
        student = Student(config)
        student.load_state_dict(payload["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileMismatchError(f"{path}: config and weights do not fit: {reason}") from error
    for name, value in student.state_dict().items():
        if not value.isfinite().all():
            # such a network scores nothing above any threshold and would look like an empty scene
            raise FileMismatchError(f"{path}: {name} holds values that are not finite")
    return student.eval()

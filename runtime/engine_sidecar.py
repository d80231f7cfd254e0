"""What lies beside a TensorRT engine: the plan itself stays as TensorRT wrote it.

`best.engine.json` holds the file's metadata and what the plan depends on. It is compared with the
machine before TensorRT sees the plan, because TensorRT's own answer to a foreign plan is None.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxseg.errors import BackendMissingError, FileMismatchError
from boxseg.runtime.metadata import METADATA_KEY, Metadata

SIDECAR_VERSION = 1
OLDEST, BEYOND = (10, 12), (12,)
"""TensorRT versions that are supported: from the first, before the second."""
INSTALL = "pip install 'boxseg[tensorrt]'; on JetPack it comes with the system"


@dataclass(frozen=True)
class Machine:
    """What a plan depends on.

    Attributes:
        tensorrt: Version, such as "10.16.1.11".
        system: Operating system and processor, such as "linux-x86_64".
        device: Name of the GPU.
        compute_capability: Such as "8.6".
        cuda_driver: CUDA version of the driver, 1000 * major + 10 * minor.
    """

    tensorrt: str
    system: str
    device: str
    compute_capability: str
    cuda_driver: int


@dataclass(frozen=True)
class Sidecar:
    """The content of an engine's JSON file.

    Attributes:
        machine: Where the engine was built.
        version_compatible: Whether the next major version of TensorRT loads it too.
        engine_sha256: Of the plan.
        onnx_sha256: Of the graph that it was built from.
        metadata: The file's metadata, as `Metadata.from_dict` reads them.
        details: How it was built and what the inspector found; for people.
    """

    machine: Machine
    version_compatible: bool
    engine_sha256: str
    onnx_sha256: str
    metadata: Mapping[str, Any]
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "format_version": SIDECAR_VERSION,
            **vars(self.machine),
            "version_compatible": self.version_compatible,
            "engine_sha256": self.engine_sha256,
            "onnx_sha256": self.onnx_sha256,
            METADATA_KEY: dict(self.metadata),
            "details": dict(self.details),
        }


def sidecar_path(engine: Path) -> Path:
    """Return where an engine's sidecar lies."""
    return engine.with_name(f"{engine.name}.json")


def sha256(content: bytes) -> str:
    """Return the hash of a file's bytes as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def system() -> str:
    """Name the operating system and the processor."""
    return f"{platform.system()}-{platform.machine()}".lower()


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with."""
    numbers = []
    for word in version.split("."):
        if not word.isdigit():
            break
        numbers.append(int(word))
    return tuple(numbers)


def check_version(version: str) -> int:
    """Return the major version of TensorRT.

    Raises:
        BackendMissingError: if this version of boxseg does not know it.
    """
    numbers = version_numbers(version)
    if not OLDEST <= numbers < BEYOND:
        oldest = ".".join(map(str, OLDEST))
        raise BackendMissingError(
            f"TensorRT {version} is not supported: {oldest} up to {BEYOND[0] - 1}.x are; {INSTALL}"
        )
    return numbers[0]


def differences(sidecar: Sidecar, here: Machine) -> list[str]:
    """Say why an engine cannot run on a machine; nothing if it can be tried.

    A plan needs the TensorRT that built it, unless it is version compatible: then this one or a
    later one up to the next major version. It needs the same system and compute capability, and a
    driver that is no older.
    """
    built, found = sidecar.machine, []
    ours, theirs = version_numbers(here.tensorrt), version_numbers(built.tensorrt)
    if sidecar.version_compatible:
        if not theirs <= ours or ours[0] > theirs[0] + 1:
            found.append(f"TensorRT {here.tensorrt}, version compatible engine of {built.tensorrt}")
    elif here.tensorrt != built.tensorrt:
        found.append(f"TensorRT {here.tensorrt}, engine of {built.tensorrt}")
    if here.system != built.system:
        found.append(f"system {here.system}, engine of {built.system}")
    if here.compute_capability != built.compute_capability:
        found.append(
            f"compute capability {here.compute_capability} ({here.device}), engine of "
            f"{built.compute_capability} ({built.device})"
        )
    if here.cuda_driver < built.cuda_driver:
        found.append(f"driver of CUDA {here.cuda_driver}, engine of {built.cuda_driver}")
    return found


def write_sidecar(engine: Path, sidecar: Sidecar) -> Path:
    """Write the JSON file of an engine."""
    path = sidecar_path(engine)
    path.write_text(json.dumps(sidecar.to_dict(), indent=1) + "\n", encoding="utf-8")
    return path


def read_sidecar(engine: Path) -> Sidecar:
    """Read the JSON file of an engine.

    Raises:
        FileMismatchError: if it is missing, damaged or of another version.
    """
    path = sidecar_path(engine)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise FileMismatchError(
            f"{engine} needs {path.name} beside it, which boxseg export writes"
        ) from None
    except ValueError as error:
        raise FileMismatchError(f"{path} is no JSON: {error}") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != SIDECAR_VERSION:
        raise FileMismatchError(
            f"{path}: format_version is {version!r}, this version of boxseg reads {SIDECAR_VERSION}"
        )
    try:
        return Sidecar(
            machine=Machine(
                **{
                    key: str(values[key])
                    for key in ("tensorrt", "system", "device", "compute_capability")
                },
                cuda_driver=int(values["cuda_driver"]),
            ),
            version_compatible=bool(values["version_compatible"]),
            engine_sha256=str(values["engine_sha256"]),
            onnx_sha256=str(values["onnx_sha256"]),
            metadata=dict(values[METADATA_KEY]),
            details=dict(values.get("details", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileMismatchError(f"{path}: a key is missing or wrong: {error}") from None


def check_engine(engine: Path, content: bytes, here: Machine) -> tuple[Sidecar, Metadata]:
    """Compare an engine with its sidecar and with a machine.

    Args:
        engine: The plan's path.
        content: The plan.
        here: Where it is to run.

    Raises:
        FileMismatchError: with all that differs.
    """
    sidecar = read_sidecar(engine)
    if sha256(content) != sidecar.engine_sha256:
        raise FileMismatchError(
            f"{engine} is not the file that {sidecar_path(engine).name} belongs to (sha256 differs)"
        )
    found = differences(sidecar, here)
    if found:
        raise FileMismatchError(
            f"{engine} cannot run here: {'; '.join(found)}; export it again on this machine"
        )
    return sidecar, Metadata.from_dict(sidecar.metadata)

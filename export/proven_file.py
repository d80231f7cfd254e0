"""Files that get their name once they have answered like the network in torch.

Until then a file has a temporary name. One that answers otherwise is kept as `<name>.failed`, one
that no engine here can run as `<name>.unverified`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.errors import BoxSegError, ParityError
from boxseg.export.manifest import expected, remove_sidecars, score_file, write_sidecars
from boxseg.export.precision_audit import audit
from boxseg.export.to_onnx import write_onnx
from boxseg.export.to_openvino import write_openvino
from boxseg.export.verify import hold, quarantine, release, remove, shelve
from boxseg.runtime.backends import open_backend
from boxseg.runtime.engine_sidecar import sidecar_path, write_sidecar
from boxseg.runtime.golden_sample import replay, sidecars

if TYPE_CHECKING:
    from boxseg.export.manifest import Golden, Story
    from boxseg.export.network import Network
    from boxseg.export.precision import Reduced
    from boxseg.export.precision_audit import Audit
    from boxseg.export.to_onnx import TracedGraph
    from boxseg.export.to_tensorrt import Engine
    from boxseg.export.verify import ParityReport, Samples

ENDINGS = {"onnx": ".onnx", "openvino": "_openvino_model", "trt": ".engine"}
"""How the names of files and folders end."""


def _ap(scores: Mapping[str, Any] | None) -> str:
    """Format an AP in percent; without masks, or without objects, there is none."""
    if scores is None:
        return "no masks in the file"
    return "no objects" if scores["AP"] is None else f"{100 * scores['AP']:.1f}"


def _temporary(kind: str, target: Path) -> Path:
    """Return the name of a file until it is proven."""
    stem = target.name.removesuffix(ENDINGS[kind])
    return target.with_name(f"{stem}.tmp{ENDINGS[kind]}")


def _write(traced: TracedGraph, kind: str, target: Path) -> Path:
    """Write one format under its temporary name; return the file to open."""
    temporary = _temporary(kind, target)
    try:
        if kind == "onnx":
            return write_onnx(traced, temporary)
        return write_openvino(traced, temporary, stem=target.name.removesuffix(ENDINGS["openvino"]))
    except OSError as error:
        if error.filename is None and error.errno is not None:  # as of a full disk
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


@dataclass(frozen=True)
class Written:
    """A file that was written, and what is known about it."""

    path: Path
    parity: ParityReport | None
    """Of the file itself; None if no engine here can run it."""
    audit: Audit | None = None
    imitation: ParityReport | None = None
    """Of the same graph in fp32 with rounding, where no engine here executes the precision."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, or of all files of the folder."""
        if self.path.is_dir():
            return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return self.path.stat().st_size

    def lines(self) -> list[str]:
        """Return the report for people."""
        parts = [self.audit, self.parity, self.imitation]
        return [line for part in parts if part is not None for line in part.lines()]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found: dict[str, Any] = {"path": str(self.path), "bytes": self.size_bytes}
        for name in ("parity", "audit", "imitation"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.as_dict()
        return found


def imitate_precision(network: Network, samples: Samples, reduced: Reduced) -> ParityReport:
    """Run the gate on the graph that rounds like the asked precision."""
    assert reduced.imitation is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imitation.onnx"
        path.write_bytes(reduced.imitation.SerializeToString())
        name = f"the same graph in fp32, rounded to {reduced.precision} after every node,"
        backend = open_backend(path)
        return hold(name, str(network.file), backend, network.backend, samples, reduced.precision)


def write_verified(
    traced: TracedGraph,
    kind: str,
    target: Path,
    network: Network,
    samples: Samples,
    reduced: Reduced | None = None,
    imitate: Callable[[], ParityReport] | None = None,
) -> Written:
    """Write one format, audit it, run the gate, and give the file its name or quarantine it.

    Args:
        traced: The graph in fp32.
        kind: The format.
        target: The file's name once it is proven.
        network: The reference.
        samples: Frames of the gate.
        reduced: The graph in reduced precision, which is written then.
        imitate: Runs the gate on a graph that rounds like that precision; it is asked where the
            engine does not execute it.

    Raises:
        ParityError: if the file does not answer like the network.
        PrecisionError: if it does not store, or its engine not execute, what was asked.
    """
    precision = "fp32" if reduced is None else reduced.precision
    temporary = _temporary(kind, target)
    try:
        opened = _write(traced if reduced is None else reduced.graph_for(kind), kind, target)
        found = audit(opened, precision, None if reduced is None else reduced.layers)
        imitation = None
        if imitate is not None and not found.executes:
            imitation = imitate()
        if not found.runs:
            return Written(shelve(temporary, target, imitation), None, found, imitation)
        report = hold(
            str(target),
            str(network.file),
            open_backend(opened),
            network.backend,
            samples,
            precision,
        )
        release(temporary, target, report, imitation)
    finally:
        remove(temporary)
    return Written(target, report, found, imitation)


def write_engine_verified(
    engine: Engine,
    target: Path,
    network: Network,
    samples: Samples,
    device: int = 0,
    imitate: Callable[[], ParityReport] | None = None,
) -> Written:
    """Write a TensorRT engine and its sidecar; for the rest as `write_verified`.

    Args:
        engine: What was built.
        target: The plan's name once it is proven.
        network: The reference.
        samples: Frames of the gate.
        device: The GPU that runs it.
        imitate: As for `write_verified`; it is asked where the engine cannot be run.

    Raises:
        ParityError: if the engine does not answer like the network.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.stem}.tmp.engine")
    temporary.write_bytes(engine.plan)
    sidecar = write_sidecar(temporary, engine.sidecar)
    try:
        try:
            backend = open_backend(temporary, f"cuda:{device}")
            report = hold(
                str(target),
                str(network.file),
                backend,
                network.backend,
                samples,
                engine.audit.asked,
            )
        except ParityError:
            raise
        except BoxSegError as error:
            imitation = None if imitate is None else imitate()
            shelf = shelve(temporary, target, imitation)
            sidecar.replace(sidecar_path(shelf))
            return Written(shelf, None, replace(engine.audit, refusal=str(error)), imitation)
        try:
            release(temporary, target, report)
        except ParityError:
            sidecar.replace(sidecar_path(target.with_name(f"{target.name}.failed")))
            raise
        sidecar.replace(sidecar_path(target))
    finally:
        remove(temporary)
        remove(sidecar)
    return Written(target, report, engine.audit)


def accompany(
    written: Written,
    kind: str,
    story: Story,
    golden: tuple[Golden, Mapping[str, Any]] | None,
    data: Path | None,
    accuracy_images: int,
    say: Callable[[str], None],
    device: str | None = None,
) -> dict[str, Any]:
    """Write manifest, golden sample and card beside a file, and replay the sample.

    Args:
        written: The file.
        kind: Its format.
        story: What all files of the export share.
        golden: The image and its expected answer.
        data: Where to measure the accuracy.
        accuracy_images: On so many images.
        say: Prints a line.
        device: Where the engine runs; None is its default.

    Returns:
        What a report adds about the file, JSON types.

    Raises:
        ParityError: if the replay differs; the file then lies beside, as `<name>.failed`.
    """
    parts = {name: getattr(written, name) for name in ("parity", "audit", "imitation")}
    proofs = {name: part.as_dict() for name, part in parts.items() if part is not None}
    scores: dict[str, Any] = {"not_measured": "no engine here can run it"}
    if written.parity is not None:
        scores = score_file(written.path, data, accuracy_images, device)
        if data is not None and "not_measured" in scores:
            say(f"accuracy     not measured: {scores['not_measured']}")
        elif "not_measured" not in scores:
            say(
                f"accuracy     box AP {_ap(scores['box'])}, mask AP {_ap(scores['mask'])}, of "
                f"{scores['what']}"
            )
    write_sidecars(written.path, kind, story, proofs, scores, golden)
    report: dict[str, Any] = {"manifest": str(sidecars(written.path).manifest), "accuracy": scores}
    if golden is not None and written.parity is not None:
        replayed = replay(written.path, device)
        precision = str(story.precision["asked"])
        if not replayed.passed and precision != "fp32":
            # the gate has passed on its own images; what rounding does to this one is stated
            backend = open_backend(written.path, device)
            own = expected(backend, golden[0], precision)
            own["reference"] = (
                f"this file on {backend.name} when it was written; in torch the answer to this "
                f"image differs by more than {precision} may ({replayed.failure()})"
            )
            write_sidecars(written.path, kind, story, proofs, scores, (golden[0], own))
            replayed = replay(written.path, device)
        for line in replayed.lines():
            say(line)
        report["golden"] = replayed.as_dict()
        reason = replayed.failure()
        if reason is not None:
            remove_sidecars(written.path)
            if kind == "trt":
                sidecar_path(written.path).replace(
                    sidecar_path(written.path.with_name(f"{written.path.name}.failed"))
                )
            quarantine(written.path, written.path, reason)
    return report

"""What a person sees of a run: progress, metrics.csv, TensorBoard, curves and predictions.

On a terminal one live block is redrawn; anywhere else plain lines are written every few steps.
All pictures can be drawn again from metrics.csv and the model files: resuming needs none of them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from boxseg.errors import counted
from boxseg.runtime.accuracy import Accuracy, report_lines
from boxseg.runtime.drawing import Instances, compare, panel, write_picture
from boxseg.runtime.images import read_image

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from boxseg.runtime.detections import Detections

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
PREDICTIONS_FILE = "predictions.png"
TENSORBOARD_FOLDER = "tensorboard"

LOG_EVERY = 20
"""Steps over which one row of metrics.csv averages."""

PICTURES = 6
"""Images in the grid of predictions."""

PICTURE_CONFIDENCE = 0.6
"""Final score that a drawn prediction needs."""

Cell = str | int | float
Predict = Callable[["npt.NDArray[np.uint8]"], "Detections"]


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Steps that are done."""
    epoch: float
    """Epochs that are done."""
    losses: Mapping[str, float]
    """Weighted loss of each term."""
    learning_rate: float
    data_seconds: float
    """Waiting for the batch."""
    step_seconds: float
    """Forward, backward and update."""
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """What tells how training goes beside the losses."""


class MetricsFile:
    """metrics.csv: one row per event, columns added as they first appear."""

    def __init__(self, path: Path, *, keep_until: int) -> None:
        """Open the file.

        Args:
            path: Where it is or will be.
            keep_until: Drop rows of later steps: a resumed run writes them again.
        """
        self._path = path
        self._columns: list[str] = []
        rows = [row for row in self.rows() if int(row["step"]) <= keep_until]
        if path.exists():
            self._write(rows)

    def rows(self) -> list[dict[str, str]]:
        """Return all complete rows; cells that do not apply are empty."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8")
        # what follows the last line end was torn off by a kill
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = [row for row in reader if row["step"].isdigit()]
        self._columns = list(reader.fieldnames or [])
        return rows

    def _line(self, row: Mapping[str, Cell]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerow(row)
        return text.getvalue()

    def _write(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        header = self._line({column: column for column in self._columns})
        temporary.write_text(header + "".join(map(self._line, rows)), encoding="utf-8")
        os.replace(temporary, self._path)

    def append(self, row: Mapping[str, Cell]) -> None:
        """Add one row; new columns go to the end."""
        new = [column for column in row if column not in self._columns]
        if new:
            rows = self.rows()
            self._columns += new
            self._write(rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(row))


@dataclass(frozen=True)
class Finding:
    """A diagnostic that says when training goes wrong, and the sentence that tells it."""

    column: str
    wrong: Callable[[float], bool]
    sentence: str
    """With {value}, the mean of LOG_EVERY steps or that of a validation."""
    patience: float = 0.0
    """Part of the run that must pass after the diagnostic first appears before it is judged: a new
    teacher knows as little as its student, and a new bank is empty."""
    of_run: bool = False
    """Judge and tell the value as a part of the run's steps."""


FINDINGS = (
    Finding(
        "pseudo_share",
        lambda value: value < 0.1,
        "only {value:.0%} of the boxes have a pseudo mask: the teacher scores too low; give it a "
        "later start (teacher.start) or the run more steps",
        patience=0.05,
    ),
    Finding(
        "pseudo_quality",
        lambda value: 0 < value < 0.3,
        "pseudo masks have a mean quality of {value:.2f}: the teacher does not know these objects "
        "yet; a later teacher.start may help",
        patience=0.05,
    ),
    Finding(
        "bank_fill",
        lambda value: value < 0.01,
        "the memory bank is empty, so nothing is pasted: no mask is good, large and isolated "
        "enough; small images need a smaller min_area in copy_paste",
        patience=0.2,
    ),
    Finding(
        "bank_age",
        lambda value: value > 0.25,
        "what the memory bank holds is on average {value:.0%} of the run old: masks of a teacher "
        "that knew less; lower min_quality or length in copy_paste",
        of_run=True,
    ),
    Finding(
        "ema_distance",
        lambda value: value > 0.3,
        "the teacher's weights are {value:.0%} away from the student's: it lags; a smaller "
        "teacher.momentum follows faster",
    ),
    Finding(
        "depth_edge_share",
        lambda value: value < 0.05,
        "only {value:.1%} of neighbouring cells are of like depth, so the consistency term hardly "
        "acts: are the depth maps 0..255 after reading, and smooth?",
    ),
    Finding(
        "depth_logit_max",
        lambda value: value > 200,
        "mask logits reach {value:.0f}: the depth factor is small and lets them grow; "
        "set schedule.clip_norm, or a smaller terms.depth.weight",
    ),
    Finding(
        "tightness",
        lambda value: value < 0.5,
        "masks do not reach the sides of their boxes (tightness {value:.0%}): see predictions.png; "
        "a longer terms.pairwise.warmup_steps or a smaller schedule.lr may help",
    ),
)
"""What diagnostics can complain about; each is said once."""


def duration(seconds: float) -> str:
    """Return a time span for people: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Averages:
    """Means since the last row, each over the steps that had the value."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, report: StepReport) -> None:
        """Count one step in."""
        values = {f"loss_{name}": value for name, value in report.losses.items()}
        values["loss"] = sum(report.losses.values())
        values["data_seconds"] = report.data_seconds
        values["step_seconds"] = report.step_seconds
        values |= report.diagnostics
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self.__init__()  # type: ignore[misc]  # starts anew
        return means


class Reports:
    """Everything that is told about a run; all methods do nothing on other ranks than zero."""

    def __init__(
        self,
        out: Path,
        *,
        first_step: int,
        last_step: int,
        console: Console | None = None,
        enabled: bool = True,
    ) -> None:
        """Prepare the reports.

        Args:
            out: Run folder.
            first_step: Steps that were done before.
            last_step: Steps of the whole run.
            console: Where to print.
            enabled: False on every rank but zero.
        """
        self._out = out
        self._last = last_step
        self._first = first_step
        self._console = console or Console(highlight=False)
        self._enabled = enabled
        self._averages = _Averages()
        self._pace: float | None = None
        self._began = time.perf_counter()
        self._live: Live | None = None
        self._losses = Text()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._writer: SummaryWriter | None = None
        self._complained: set[str] = set()
        self._appeared: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Open files and screen."""
        if not self._enabled:
            return self
        from torch.utils.tensorboard.writer import SummaryWriter

        self._metrics = MetricsFile(self._out / METRICS_FILE, keep_until=self._first)
        self._writer = SummaryWriter(
            str(self._out / TENSORBOARD_FOLDER), purge_step=self._first + 1
        )
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
            )
            self._task = self._progress.add_task(
                "", total=self._last, completed=self._first, left=""
            )
            self._live = Live(
                Group(self._progress, self._losses), console=self._console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the screen back and close the files."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def note(self, text: str) -> None:
        """Print one line."""
        if self._enabled:
            self._console.print(text, markup=False, soft_wrap=True)

    def step(self, report: StepReport) -> None:
        """Count a step in, and write a row every LOG_EVERY steps."""
        if not self._enabled:
            return
        self._averages.add(report)
        for name in report.diagnostics:
            self._appeared.setdefault(name, report.step)
        seconds = report.data_seconds + report.step_seconds
        self._pace = seconds if self._pace is None else 0.95 * self._pace + 0.05 * seconds
        losses = "  ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        left = f"ETA {duration((self._last - report.step) * self._pace)}"
        state = (
            f"epoch {report.epoch:.1f}  lr {report.learning_rate:.2e}  "
            f"{report.step_seconds:.2f} s/step + {report.data_seconds:.2f} s waiting for data"
        )
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=report.step, left=left)
            self._losses.plain = f"{state}\nloss {sum(report.losses.values()):.3f}  {losses}"
        if report.step % LOG_EVERY and report.step != self._last:
            return
        means = self._averages.take()
        self._complain(means, report.step)
        if self._progress is None:
            terms = "  ".join(
                f"{name.removeprefix('loss_')} {value:.3f}"
                for name, value in means.items()
                if name.startswith("loss_")
            )
            self.note(
                f"step {report.step}/{self._last}  loss {means['loss']:.3f}  {terms}  "
                f"{state}  {left}"
            )
        row: dict[str, Cell] = {
            "step": report.step,
            "phase": "train",
            "epoch": f"{report.epoch:.4f}",
            "lr": f"{report.learning_rate:.6g}",
            "loss": f"{means.pop('loss'):.6g}",
        }
        row |= {name: f"{value:.6g}" for name, value in means.items()}
        self._record(row)

    def _complain(self, values: Mapping[str, float], step: int) -> None:
        """Say in a sentence what a diagnostic shows to go wrong, once each."""
        for finding in FINDINGS:
            value = values.get(finding.column)
            if value is None or finding.column in self._complained:
                continue
            if finding.of_run:
                value /= self._last
            seen = step - self._appeared.get(finding.column, step)
            if seen < finding.patience * self._last or not finding.wrong(value):
                continue
            self._complained.add(finding.column)
            self.note(f"look: {finding.sentence.format(value=value)}")

    def _record(self, row: Mapping[str, Cell]) -> None:
        self._metrics.append(row)
        if self._writer is None:
            return
        for name, value in row.items():
            if name not in ("step", "phase", "epoch"):
                tag = (
                    name.replace("_", "/", 1)
                    if name.startswith(("loss_", "box_", "mask_"))
                    else name
                )
                self._writer.add_scalar(tag, float(value), int(row["step"]))

    def validation(
        self,
        step: int,
        accuracy: Accuracy,
        *,
        score: float,
        improved: bool,
        beside: Mapping[str, Accuracy] | None = None,
    ) -> None:
        """Print and record one validation.

        Args:
            step: Steps that are done.
            accuracy: Box and mask AP and tightness of the weights that ship.
            score: The number that chooses the best weights.
            improved: Whether these weights are the best so far.
            beside: The same of other weights by name, such as the raw student.
        """
        if not self._enabled:
            return
        row: dict[str, Cell] = {"step": step, "phase": "validation"}
        row |= _accuracy_cells(accuracy)
        for name, other in (beside or {}).items():
            row |= {f"{name}_{key}": cell for key, cell in _accuracy_cells(other).items()}
        row["score"] = f"{score:.6g}"
        self._record(row)
        self.note(f"validation after step {step}" + ("  (best so far)" if improved else ""))
        for line in report_lines(accuracy):
            self.note(f"  {line}")
        for name, other in (beside or {}).items():
            self.note(f"  {name}:")
            for line in report_lines(other):
                self.note(f"    {line}")
        if accuracy.tightness is not None:
            self._complain({"tightness": accuracy.tightness}, step)
        self.draw_curves()

    def draw_curves(self) -> None:
        """Write curves.png from metrics.csv."""
        if self._enabled:
            draw_curves(self._metrics.rows(), self._out / CURVES_FILE)

    def pictures(self, predict: Predict, annotation_file: Path, image_root: Path) -> None:
        """Write predictions.png: truth beside prediction on the first images with objects.

        Args:
            predict: A Segmenter.
            annotation_file: COCO json.
            image_root: Folder that its file names are relative to.
        """
        if self._enabled:
            draw_predictions(predict, annotation_file, image_root, self._out / PREDICTIONS_FILE)

    def finish(self) -> None:
        """Say that the run is complete."""
        self.draw_curves()
        self.note(
            f"done: {counted(self._last, 'step')} in "
            f"{duration(time.perf_counter() - self._began)}; results in {self._out}"
        )


def _accuracy_cells(accuracy: Accuracy) -> dict[str, Cell]:
    """Return box and mask AP and tightness as cells of metrics.csv, without those not known."""
    cells: dict[str, Cell] = {}
    for kind, precision in (("box", accuracy.box), ("mask", accuracy.mask)):
        for name, value in (precision.as_dict() if precision else {}).items():
            if value is not None:
                cells[f"{kind}_{name}"] = f"{value:.6g}"
    if accuracy.tightness is not None:
        cells["tightness"] = f"{accuracy.tightness:.6g}"
    return cells


def _series(rows: Sequence[Mapping[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Return steps and values of the rows that have a column."""
    found = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return [step for step, _ in found], [value for _, value in found]


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw losses per term and accuracies over the steps.

    Args:
        rows: Rows of metrics.csv.
        path: PNG to write.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    losses = [column for column in columns if column.startswith("loss_")]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for column in losses:
        steps, values = _series(rows, column)
        left.plot(steps, values, label=column.removeprefix("loss_"), linewidth=1)
    left.set_title("loss per term")
    left.set_xlabel("optimizer steps")
    if losses:
        left.set_yscale("log")
        left.legend(fontsize="small")
    shown = {
        "box_AP": "box AP",
        "mask_AP": "mask AP",
        "mask_AP50": "mask AP50",
        "mask_AP75": "mask AP75",
        "tightness": "tightness",
    }
    for column, title in shown.items():
        steps, values = _series(rows, column)
        if steps:
            right.plot(steps, [100 * value for value in values], "o-", label=title, markersize=3)
    right.set_title("validation")
    right.set_xlabel("optimizer steps")
    right.set_ylim(0, 100)
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize="small")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)


def draw_predictions(predict: Predict, annotation_file: Path, image_root: Path, path: Path) -> None:
    """Draw truth beside prediction, two images per row.

    Args:
        predict: A Segmenter.
        annotation_file: COCO json that `evaluate` accepted.
        image_root: Folder that its file names are relative to.
        path: PNG to write.
    """
    content = json.loads(annotation_file.read_bytes())
    names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    objects: dict[int, list[dict[str, object]]] = {}
    for entry in content["annotations"]:
        if not entry.get("iscrowd"):
            objects.setdefault(entry["image_id"], []).append(entry)
    images = [entry for entry in content["images"] if entry["id"] in objects]
    # spread over the file: neighbours in a file are often alike
    images = images[:: max(1, len(images) // PICTURES)][:PICTURES]
    pairs = []
    for entry in images:
        frame = read_image(image_root / entry["file_name"])
        truth = Instances.from_annotations(objects[entry["id"]], names, *frame.shape[:2])
        found = Instances.from_detections(predict(frame), PICTURE_CONFIDENCE)
        pairs.append(compare(frame, truth, found, scale=max(1.0, 480 / frame.shape[1])))
    if not pairs:
        return
    rows = [
        [picture for pair in pairs[start : start + 2] for picture in pair]
        for start in range(0, len(pairs), 2)
    ]
    temporary = path.with_suffix(".tmp.png")
    write_picture(temporary, panel(rows, titles=("truth", "prediction") * min(2, len(pairs))))
    os.replace(temporary, path)

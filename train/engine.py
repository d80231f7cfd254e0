"""The training loop: one step, the order of the data, validation, saving, resuming.

Lightning Fabric carries devices, precision and processes; the loop is ours. All state lives
between two optimizer steps: whoever stops the run there loses nothing, and the steps that follow
`--resume` are, on a CPU, bit for bit those of the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from boxseg.checkpoint import (
    TRAINER_FILE,
    load_model,
    model_payload,
    remove_torn_files,
    save_model,
    write_atomically,
)
from boxseg.config import STRIDES, ModelConfig
from boxseg.errors import (
    BackendMissingError,
    BoxSegError,
    DataError,
    FileMismatchError,
    counted,
)
from boxseg.inference import TorchBackend
from boxseg.runtime.accuracy import (
    Accuracy,
    Found,
    answer_examination,
    judge,
    load_truth,
    open_examination,
)
from boxseg.runtime.segmenter import Segmenter
from boxseg.student import DensePredictions, Student
from boxseg.train.coco import CocoBoxes, image_size
from boxseg.train.criterion import Criterion, StepContext, build_criterion
from boxseg.train.data_order import Unreadable, images_per_process
from boxseg.train.interrupts import Interrupts
from boxseg.train.loader import (
    TRAIN_JSON,
    batches_of,
    build_loader,
    build_sampler,
    open_images,
)
from boxseg.train.memory_bank import MemoryBank, build_copy_paste
from boxseg.train.pseudo_masks import build_pseudo_masks
from boxseg.train.pseudo_pictures import PSEUDO_FILE, draw_lesson
from boxseg.train.recipe import (
    Recipe,
    ScheduleRecipe,
    differences,
    expand_path,
    parse_recipe,
    recipe_yaml,
)
from boxseg.train.reports import LOG_EVERY, Reports, StepReport
from boxseg.train.run_lock import LOCK_FILE, FolderInUseError, RunLock
from boxseg.train.step_profile import SKIPPED, WAITING, Clock, StepClock, StepProfile, untimed
from boxseg.train.supervision import Lesson, StudentView, Supervision
from boxseg.train.teacher import Teacher
from boxseg.train.trainer_state import (
    Best,
    TrainerState,
    capture_random,
    load_trainer_state,
    restore_random,
    save_trainer_state,
)
from boxseg.train.transfer import Transfer, transfer_weights
from boxseg.train.transforms import Batch, Sample, scaled_size

CONFIG_FILE = "config.yaml"
LAST_FILE = "last.pt"
BEST_FILE = "best.pt"
NONFINITE_FILE = "nonfinite_batch.pt"
VALIDATION_JSON = "val.json"
PICTURE_EPOCHS = 5
"""Epochs between pictures of pseudo masks."""


class RunInterruptedError(Exception):
    """Ctrl-C or a termination signal, after the run was saved."""

    def __init__(self, step: int) -> None:
        """Keep the number of steps that are done and saved."""
        super().__init__(f"interrupted after step {step}")
        self.step = step


class LoaderError(BoxSegError):
    """A loader process died."""


class LostProcessError(BoxSegError):
    """Another process of the run ended or cannot be reached any more."""


class NotWrittenError(BoxSegError):
    """A file of the run could not be written; what was saved before is whole."""


class CompilerError(BoxSegError):
    """torch.compile could not compile the student."""


class NonFiniteLossError(BoxSegError):
    """A loss became infinite or no number; the batch was saved."""


@dataclass(frozen=True)
class RunSettings:
    """What a run is given beside its recipe."""

    data: Path
    """Folder with train.json and val.json."""
    out: Path
    """Run folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or an index N of a GPU."""
    devices: int = 1
    """Processes on this machine, one device each."""
    weights: Path | None = None
    """Model file to start from."""
    resume: bool = False
    """Continue the run in `out`."""
    strict: bool = False
    """Make defects of the data errors."""
    compiled: bool = False
    """Compile the student with torch.compile; like the device, it changes rounding alone."""


def data_identity(images: CocoBoxes) -> dict[str, Any]:
    """Return what tells this data from other data, as plain values."""
    return {
        "classes": list(images.classes),
        "category_ids": list(images.category_ids),
        "images": len(images),
        "annotations_sha256": images.sha256,
    }


# ---------------------------------------------------------------------------------------------
# The step


class StepInput:
    """Lesson and step number; a plain object, so that Fabric passes it on untouched."""

    __slots__ = ("lesson", "step")

    def __init__(self, lesson: Lesson, step: int) -> None:
        """Keep both."""
        self.lesson = lesson
        self.step = step


def _float32(predictions: DensePredictions) -> DensePredictions:
    """Return predictions whose floating point tensors are float32.

    The box features stay as they are: who reads some of them converts those.
    """
    assert is_dataclass(predictions)
    values = {field.name: getattr(predictions, field.name) for field in fields(predictions)}
    changed: dict[str, Any] = {
        name: value.float()
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return replace(predictions, **changed)


class TrainingStep(nn.Module):
    """Student and terms as one module: images in, one loss per term out.

    All that learns is inside, so that one wrapper serves several processes and mixed precision.
    """

    def __init__(
        self,
        student: Student,
        criterion: Criterion,
        mean_over_ranks: Callable[[Tensor], Tensor],
        *,
        compiled: bool = False,
    ) -> None:
        """Keep the parts.

        Args:
            student: The network.
            criterion: The terms.
            mean_over_ranks: Averages a scalar over all processes.
            compiled: Let torch.compile run the network, one graph for all sizes of images. Its
                parameters keep their names: the function is compiled, not the module.
        """
        super().__init__()
        self.student = student
        self.criterion = criterion
        self._mean_over_ranks = mean_over_ranks
        self._compiled: Callable[[Tensor], DensePredictions] | None = (
            torch.compile(student.forward, dynamic=True) if compiled else None
        )

    def forward(self, given: StepInput) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss of each term, already weighted, and diagnostics.

        The network runs in the precision of the run, the terms always in float32.
        """
        # channels last: convolutions of CPUs and of GPUs in half precision are faster so
        lesson = given.lesson
        images = lesson.images.contiguous(memory_format=torch.channels_last)
        predictions = self.student(images) if self._compiled is None else self._compiled(images)
        context = StepContext(
            student=self.student,
            predictions=_float32(predictions),
            batch=lesson.batch,
            step=given.step,
            mean_over_ranks=self._mean_over_ranks,
            pseudo=lesson.pseudo,
            teacher_step=lesson.teacher_step,
            depth_head=self.criterion.depth_head,
            guidance=self.criterion.guidance(given.step),
        )
        self.criterion.clock("forward")
        with torch.autocast(lesson.images.device.type, enabled=False):
            losses: dict[str, Tensor] = self.criterion(context)
        return losses, dict(context.diagnostics)


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the batch norms inside a module."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def freeze(student: Student, *, stages: int, batch_norms: bool) -> None:
    """Exclude parts of the backbone from learning; see also `train_mode`.

    Args:
        student: The network.
        stages: Stages of the backbone to freeze, counted from the image.
        batch_norms: Freeze every batch norm of the backbone.
    """
    backbone = student.backbone
    for stage in list(backbone.stages)[:stages]:
        stage.requires_grad_(False)
    if batch_norms:
        for norm in _batch_norms(backbone.stages):
            norm.requires_grad_(False)


def train_mode(step: nn.Module, student: Student, *, stages: int, batch_norms: bool) -> None:
    """Set everything to train mode except the statistics of what is frozen."""
    step.train()
    for stage in list(student.backbone.stages)[:stages]:
        stage.eval()
    if batch_norms:
        for norm in _batch_norms(student.backbone.stages):
            norm.eval()


def refuse_single_cells(images: CocoBoxes, recipe: Recipe, processes: int) -> None:
    """Refuse an image that would reach a learning batch norm as one value per channel.

    torch cannot normalise that, and would end the run at the first such image. The norms of the
    mask branch always learn, at strides up to that of P5; those of towers at strides up to P7's.

    Args:
        images: What is trained on.
        recipe: Says how large images become, how many make a step, and which norms there are.
        processes: Number of processes that share a step.

    Raises:
        ValueError: if there is such an image, or if the processes cannot share a step evenly.
    """
    if images_per_process(recipe.data.batch_size, processes) > 1:
        return
    in_towers = recipe.model.tower_norm == "batch"
    stride = STRIDES[-1] if in_towers else STRIDES[2]
    short = min(recipe.data.short_sides)
    if short > stride:
        return
    for index, (height, width) in enumerate(images.sizes.tolist()):
        size = scaled_size(height, width, short, recipe.data.long_side)
        if max(size) <= stride:  # then padded, to multiples of 32, as well
            cure = ", or set -o model.tower_norm=group" if in_towers else ""
            raise ValueError(
                f"data.batch_size {recipe.data.batch_size} leaves each process one image per step, "
                f"and image {images.image_ids[index]} ({images.file_name(index)}), scaled to "
                f"{size[0]} x {size[1]} pixels (height x width), is a single cell to the batch "
                f"norms at stride {stride}, which need two; set -o data.batch_size={2 * processes} "
                f"or more, make data.short_sides larger{cure}"
            )


# ---------------------------------------------------------------------------------------------
# Compiler and devices


@contextlib.contextmanager
def _compiler(used: bool) -> Iterator[None]:
    """Say in one line that torch.compile failed, and which folder a killed start may have torn.

    Raises:
        CompilerError: if it failed.
    """
    if not used:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # a second of imports

    try:
        yield
    except TorchDynamoException as error:
        folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(
            Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        )
        said = " ".join(str(error).split("\n")[:2])
        raise CompilerError(
            f"--compile: torch.compile failed: {said}; leave --compile out or, if an earlier start "
            f"was killed while it compiled, remove {folder}"
        ) from error


def _launched(devices: int) -> tuple[int, int]:
    """Return processes on each machine and the number of machines, as torchrun or SLURM says.

    Args:
        devices: What the user asked for; 1 leaves it to the launcher.

    Raises:
        ValueError: if the user asks for another number than the launcher started.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:
        launcher, here = "torchrun", int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = max(1, int(os.environ.get("WORLD_SIZE", here)) // here)
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        launcher, nodes = "srun", int(os.environ.get("SLURM_NNODES", "1"))
        here = int(os.environ["SLURM_NTASKS"]) // nodes
    else:
        return devices, 1
    if devices not in (1, here):
        raise ValueError(
            f"--devices {devices}: {launcher} started {counted(here, 'process')} on this machine; "
            "leave --devices out"
        )
    return here, nodes


def open_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Return Fabric for a device as a user writes it.

    Args:
        device: auto, cpu, cuda, cuda:N or N.
        devices: Processes on this machine, one device each.
        precision: 32-true, bf16-mixed or 16-mixed.

    Raises:
        ValueError: if the device is not known, or cannot do the precision.
        BackendMissingError: if the device is not there.
    """
    name, _, index = device.partition(":")
    if device.isdigit():
        name, index = "cuda", device
    if name == "gpu":
        name = "cuda"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name not in ("cpu", "cuda") or (index and not index.isdigit()) or (index and name == "cpu"):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {device}")
    if devices < 1:
        raise ValueError(f"--devices must be at least 1, got {devices}")
    if name == "cuda" and not gpus:
        raise BackendMissingError(f"--device {device}: torch finds no CUDA GPU; use --device cpu")
    if name == "cuda" and (devices > gpus or (index and int(index) >= gpus)):
        raise BackendMissingError(
            f"--device {device} --devices {devices}: this machine has {counted(gpus, 'GPU')}"
        )
    if index and devices > 1:
        raise ValueError(f"--device {device} names one GPU, --devices asks for {devices}")
    if name == "cpu" and precision == "16-mixed":
        raise ValueError("--precision 16-mixed needs a GPU; a CPU can do 32-true and bf16-mixed")
    devices, nodes = _launched(devices)
    return Fabric(
        accelerator=name,
        devices=[int(index)] if index else devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=cast(Any, precision),
    )


def seed_everything(seed: int) -> None:
    """Seed the generators of Python and torch."""
    random.seed(seed)
    torch.manual_seed(seed)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error)
    return "gloo/" in text and any(
        sign in text for sign in ("onnection", "Timed out", "Broken pipe", "peer")
    )


def _gather(fabric: Fabric, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the value of every process, in the order of their ranks."""
    if fabric.world_size == 1:
        return [value]
    values: list[dict[str, Any]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(values, value)
    return values


def _gather_to_first(fabric: Fabric, own: dict[int, Found]) -> dict[int, Found]:
    """Return the union of what all processes have; nothing in the others."""
    if fabric.world_size == 1:
        return own
    parts: list[dict[int, Found]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.gather_object(own, parts if fabric.is_global_zero else None)
    return {key: value for part in parts for key, value in part.items()}


def open_in_turn(fabric: Fabric, opening: Callable[[], CocoBoxes]) -> CocoBoxes:
    """Open the data in one process of each machine first: the others then find its cache."""
    images = None
    try:
        if fabric.local_rank == 0:
            images = opening()
    finally:
        if fabric.world_size > 1:
            fabric.barrier()  # also after an error, which the others will meet themselves
    return opening() if images is None else images


# ---------------------------------------------------------------------------------------------
# The run


def build_optimizer(module: nn.Module, schedule: ScheduleRecipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all parameters that learn."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(
            learning,
            lr=schedule.lr,
            betas=(schedule.momentum, 0.999),
            weight_decay=schedule.weight_decay,
        )
    return torch.optim.SGD(
        learning, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


class Engine:
    """One run: built from a recipe and data, or continued from its folder."""

    def __init__(self, recipe: Recipe, settings: RunSettings, lock: RunLock | None = None) -> None:
        """Build everything; nothing is written yet.

        Args:
            recipe: What to learn.
            settings: Where, and from what.
            lock: Lock of the run folder. The first process takes it, before it reads a run that
                is to go on or writes a new one; its owner gives it back.

        Raises:
            ValueError: if the recipe does not fit the data or the machine.
            FolderInUseError: if another process has the run that is to go on.
            DataError: if the data cannot be used.
            FileMismatchError: if weights or trainer.pt cannot be used.
        """
        self.recipe = recipe
        self.settings = settings
        self._lock = lock
        self.fabric = open_fabric(settings.device, settings.devices, recipe.precision)
        saved = self._saved_run() if settings.resume and self.fabric.is_global_zero else None
        self.fabric.launch()
        if settings.resume and saved is None:  # the first process has the lock by now
            saved = self._saved_run()
        self.images = open_in_turn(
            self.fabric, lambda: open_images(recipe, settings.data, strict=settings.strict)
        )
        self.validation_file = self._check_validation()
        refuse_single_cells(self.images, recipe, self.fabric.world_size)
        config = recipe.model.build(self.images.classes, self.images.category_ids)
        seed_everything(recipe.seed)
        self.student = self._build_student(config, start=saved is None)
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        criterion = build_criterion(recipe.terms, config)
        freeze(
            self.student,
            stages=recipe.model.frozen_stages,
            batch_norms=recipe.model.frozen_bn,
        )
        step = TrainingStep(
            self.student, criterion, self._mean_over_ranks, compiled=settings.compiled
        )
        self.criterion = criterion
        self.optimizer = build_optimizer(step, recipe.schedule)
        self.module, self.fabric_optimizer = self.fabric.setup(step, self.optimizer)
        self.supervision = self._build_supervision()
        self._lesson: Lesson | None = None
        self._clock: Clock = untimed
        self.step = 0
        self.best = Best()
        self.saved_step: int | None = None
        self.validated_step = 0
        self.identity = data_identity(self.images)
        seed_everything(recipe.seed + self.fabric.global_rank)
        if saved is not None:
            self._restore(saved)
        self.interrupts = Interrupts()

    # ---- building -------------------------------------------------------------------------

    def _saved_run(self) -> TrainerState:
        """Lock the run to continue, read its trainer.pt and refuse a changed recipe."""
        if self._lock is not None and self.fabric.is_global_zero:
            self._lock.take()
        path = self.settings.out / TRAINER_FILE
        state = load_trainer_state(path)
        changed = differences(parse_recipe(state.recipe, source=str(path)), self.recipe)
        if changed:
            raise ValueError(
                f"--resume: the recipe differs from the one that {self.settings.out} was started "
                f"with: {'; '.join(changed)}; undo that, or start a new run with --out"
            )
        return state

    def _check_validation(self) -> Path | None:
        """Find out now, not at the first validation, whether val.json can be scored.

        Returns:
            The file, or None if there is none.

        Raises:
            DataError: if it cannot be scored, lists missing or damaged images, or shares no class.
            BackendMissingError: if pycocotools is not installed.
        """
        path = self.settings.data / VALIDATION_JSON
        if not path.is_file():
            return None
        if importlib.util.find_spec("pycocotools") is None:
            raise BackendMissingError(
                "validation needs pycocotools; pip install boxseg[train], or remove val.json"
            )
        truth = load_truth(path)
        for image in truth.images[: self.recipe.validation.max_images]:
            try:
                size = image_size(self.settings.data / image["file_name"])
            except DataError as error:
                raise DataError(f"{path}: image {image['id']}: {error}") from None
            stated = image.get("height", size[0]), image.get("width", size[1])
            if stated != size:
                raise DataError(
                    f"{path}: image {image['id']} ({image['file_name']}) is {size[0]} x {size[1]} "
                    f"pixels (height x width), the file says {stated[0]} x {stated[1]}"
                )
        if not set(truth.categories.values()) & set(self.images.classes):
            raise DataError(
                f"{path}: shares no class with {TRAIN_JSON}: "
                f"{', '.join(truth.categories.values())}; {', '.join(self.images.classes)}"
            )
        return path

    def _build_student(self, config: ModelConfig, *, start: bool) -> Student:
        """Build the network; backbone weights are read only where a run starts from them."""
        weights = self.recipe.model.weights
        self.transfer: Transfer | None = None
        if start and self.settings.weights is not None:
            source = load_model(self.settings.weights)
            student = Student(config)
            self.transfer = transfer_weights(source, student)
            return student
        if start and weights is not None:
            if "/" in weights or "$" in weights or weights.endswith((".pth", ".pt")):
                path = expand_path(weights, "model.weights")
                if not path.is_file():
                    raise FileNotFoundError(
                        f"model.weights: there is no file {path}; give another with "
                        "-o model.weights=FILE, or -o model.weights=null for random weights"
                    )
                weights = str(path)
            return Student(config, weights)
        return Student(config)

    def _build_supervision(self) -> Supervision:
        """Build teacher, pseudo masks, bank and view, as far as the recipe names them."""
        recipe = self.recipe
        schedule = recipe.schedule.max_iters
        view = None if recipe.view is None else StudentView(recipe.view)
        if recipe.teacher is None or recipe.pseudo_masks is None:
            return Supervision(max_iters=schedule, view=view)
        start = recipe.teacher.start_step(schedule)
        bank = None
        if recipe.copy_paste is not None:
            bank = MemoryBank(
                build_copy_paste(recipe.copy_paste),
                seed=recipe.seed,
                rank=self.fabric.global_rank,
            )
        return Supervision(
            max_iters=schedule,
            start_step=start,
            teacher=Teacher(
                self.student,
                momentum=recipe.teacher.momentum_of(schedule),
                ramp=start == 0,
                imgsz=recipe.teacher.imgsz,
            ),
            maker=build_pseudo_masks(recipe.pseudo_masks),
            bank=bank,
            view=view,
        )

    @property
    def shipped(self) -> tuple[Student, str]:
        """The network that ships now, and which weights it has: the average once there is one."""
        teacher = self.supervision.teacher
        if teacher is not None and teacher.updates:
            return teacher.network, "ema"
        return self.student, "student"

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        """Average a scalar over all processes."""
        if self.fabric.world_size == 1:
            return value
        return cast(Tensor, self.fabric.all_reduce(value.detach(), reduce_op="mean"))

    def _restore(self, state: TrainerState) -> None:
        """Go back to the moment that trainer.pt holds."""
        path = self.settings.out / TRAINER_FILE
        for name, value in self.identity.items():
            if state.data.get(name) != value:
                raise ValueError(
                    f"--resume: {self.settings.data / TRAIN_JSON} is not the data that "
                    f"{self.settings.out} was started with ({name} differs)"
                )
        if len(state.random) != self.fabric.world_size:
            raise ValueError(
                f"--resume: {path} was written by {counted(len(state.random), 'process')}, "
                f"this run has {self.fabric.world_size}; use --devices {len(state.random)}"
            )
        try:
            self.student.load_state_dict(state.model["state_dict"])
            self.criterion.load_state_dict(state.criterion)
            self.supervision.load_state(
                state.supervision, state.own_supervision[self.fabric.global_rank]
            )
            self.optimizer.load_state_dict(state.optimizer)
            self.fabric.strategy.precision.load_state_dict(state.precision)
            restore_random(state.random[self.fabric.global_rank], self.fabric.device)
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileMismatchError(f"{path} does not fit this run: {reason}") from error
        self.step = state.step
        self.best = state.best
        self.saved_step = state.step
        self.validated_step = state.validated_step

    def _loader(self) -> DataLoader[Sample | Unreadable]:
        sampler = build_sampler(
            self.images,
            self.recipe,
            first_step=self.step,
            last_step=self.recipe.schedule.max_iters,
            rank=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )
        return build_loader(
            self.images,
            sampler,
            workers=self.recipe.data.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )

    # ---- the loop -------------------------------------------------------------------------

    def epoch_of(self, step: int) -> int:
        """Return how many epochs are complete after `step` steps."""
        return step * self.recipe.data.batch_size // len(self.images)

    def fit(self, reports: Reports) -> None:
        """Train from the current step to the last one.

        Raises:
            RunInterruptedError: after Ctrl-C, SIGTERM or SIGHUP, when the run is saved.
            NonFiniteLossError: if a loss stops being a number.
            LoaderError: if a loader process dies.
            LostProcessError: if another process of the run dies.
            NotWrittenError: if a file of the run cannot be written, as on a full disk.
        """
        with self.interrupts, reports:
            try:
                if self.step and self._validation_due() and self.validated_step != self.step:
                    self._validate(reports)
                self._train_mode()
                self._train(reports)
            except OSError as error:
                raise self._cannot_write(error) from error
            except RuntimeError as error:
                # torch raises these, without a class of their own, wherever the run just is
                if str(error).startswith("DataLoader worker"):
                    raise self._dead_loader(error) from error
                if self.fabric.world_size > 1 and _is_lost_connection(error):
                    raise self._lost_process() from error
                raise
            reports.finish()

    def _cannot_write(self, error: OSError) -> NotWrittenError:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        kept = (
            "nothing of this run is saved yet"
            if self.saved_step is None
            else f"the run as it was after step {self.saved_step} is whole; "
            "free some space, and --resume continues from there"
        )
        return NotWrittenError(f"stopped after step {self.step}: {what}; {kept}")

    def _dead_loader(self, error: Exception) -> LoaderError:
        reason = str(error) or type(error).__name__
        return LoaderError(
            f"a loader process died after step {self.step} ({reason}); memory is the usual "
            "reason: try --workers 0; --resume continues from the last save"
        )

    def _lost_process(self) -> LostProcessError:
        return LostProcessError(
            f"another process of the run ended after step {self.step} (this is process "
            f"{self.fabric.global_rank} of {self.fabric.world_size}, it has lost the connection); "
            "the reason is in that process's own message, if it had time for one; "
            "--resume continues from the last save"
        )

    def _train(self, reports: Reports) -> None:
        """Make all steps that are left."""
        with batches_of(self._loader()) as batches:
            while self.step < self.recipe.schedule.max_iters:
                self._one_step(batches, reports)
                if self._asked_to_stop():
                    self.save()
                    raise RunInterruptedError(self.step)
                if self._validation_due():
                    self.save()
                    self._validate(reports)
                    self._train_mode()
                    continue
                ended = self.epoch_of(self.step) != self.epoch_of(self.step - 1)
                if ended or self._save_due():
                    self.save()
                if ended and self.epoch_of(self.step) % PICTURE_EPOCHS == 0:
                    self._draw_lesson()

    def _save_due(self) -> bool:
        every = self.recipe.schedule.save_every
        return every is not None and self.step % every == 0

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to stop."""
        if self.fabric.world_size == 1:
            return self.interrupts.asked
        flag = torch.tensor(float(self.interrupts.asked), device=self.fabric.device)
        return bool(cast(Tensor, self.fabric.all_reduce(flag, reduce_op="sum")) > 0)

    def _train_mode(self) -> None:
        train_mode(
            self.module,
            self.student,
            stages=self.recipe.model.frozen_stages,
            batch_norms=self.recipe.model.frozen_bn,
        )

    def _next_batch(self, batches: Iterator[Any]) -> Batch:
        try:
            batch = next(batches)
        except (ConnectionError, EOFError) as error:
            raise self._dead_loader(error) from error
        if isinstance(batch, Unreadable):
            raise DataError(batch.message)
        return cast(Batch, batch)

    def _one_step(self, batches: Iterator[Any], reports: Reports) -> None:
        begin = time.perf_counter()
        batch = self._next_batch(batches)
        loaded = time.perf_counter()
        rate = self.recipe.schedule.learning_rate(self.step)
        losses, diagnostics = self.train_on(batch, rate)
        self.step += 1
        reports.step(
            StepReport(
                step=self.step,
                epoch=self.step * self.recipe.data.batch_size / len(self.images),
                losses=losses,
                diagnostics=diagnostics,
                learning_rate=rate,
                data_seconds=loaded - begin,
                step_seconds=time.perf_counter() - loaded,
            )
        )

    def profile(self, steps: int) -> StepProfile:
        """Measure where the time of a step goes; nothing is written.

        The steps lie in the middle of the schedule, where warm-ups are over and a teacher teaches,
        but with the smallest learning rate: untrained weights would not bear the full one.

        Args:
            steps: Steps that count; SKIPPED more are made before them.

        Raises:
            ValueError: if the schedule is shorter than that.
        """
        schedule = self.recipe.schedule
        needed = SKIPPED + steps
        if needed > schedule.max_iters:
            raise ValueError(
                f"--profile {steps}: {needed} steps with the {SKIPPED} that do not count, but "
                f"schedule.max_iters is {schedule.max_iters}"
            )
        self.step = min(schedule.max_iters // 2, schedule.max_iters - needed)
        first = self.step + SKIPPED
        clock = StepClock(self.fabric.device)
        self._clock = self.criterion.clock = clock
        try:
            with batches_of(self._loader()) as batches:
                self._train_mode()
                for _ in range(needed):
                    if self.step == first:
                        clock.restart()
                    batch = self._next_batch(batches)
                    clock(WAITING)
                    self.train_on(batch, schedule.learning_rate(0))
                    self.step += 1
        finally:
            self._clock = self.criterion.clock = untimed
        return StepProfile(dict(clock.seconds), steps, self.recipe.data.batch_size, first)

    def train_on(self, batch: Batch, rate: float) -> tuple[dict[str, float], dict[str, float]]:
        """Make one optimizer step.

        Args:
            batch: Images and boxes, on any device.
            rate: Learning rate.

        Returns:
            The loss of each term and the diagnostics of the step, averaged over the processes.

        Raises:
            CompilerError: if the student is to be compiled and cannot be.
            NonFiniteLossError: before the weights are touched; the batch is saved.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clock = self._clock
        moved = batch.to(self.fabric.device, non_blocking=True)
        clock("transfer")
        with self.fabric.autocast():
            lesson = self.supervision.prepare(moved, self.student, self.step)
        self._lesson = lesson
        clock("teacher, pseudo masks, paste, view")
        with _compiler(self.settings.compiled):
            losses, diagnostics = self.module(StepInput(lesson, self.step))
        diagnostics |= lesson.diagnostics
        stacked = torch.stack(
            [value.detach().float() for value in (*losses.values(), *diagnostics.values())]
        )
        if self.fabric.world_size > 1:
            stacked = cast(Tensor, self.fabric.all_reduce(stacked, reduce_op="mean"))
        numbers = stacked.tolist()
        values = dict(zip(losses, numbers, strict=False))
        told = dict(zip(diagnostics, numbers[len(losses) :], strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            self._refuse(batch, values, rate)
        clock("reading the losses")
        self.optimizer.zero_grad(set_to_none=True)
        with _compiler(self.settings.compiled):  # compiles this pass when it first comes here
            self.fabric.backward(cast(Tensor, sum(losses.values())))
        clock("backward")
        if self.recipe.schedule.clip_norm is not None:
            self.fabric.clip_gradients(
                self.module,
                self.fabric_optimizer,
                max_norm=self.recipe.schedule.clip_norm,
                error_if_nonfinite=False,
            )
        self.fabric_optimizer.step()
        clock("optimizer")
        self._share_statistics()
        self.supervision.after_step(self.student, self.step)
        clock("average")
        teacher = self.supervision.teacher
        if teacher is not None and teacher.updates and (self.step + 1) % LOG_EVERY == 0:
            told["ema_distance"] = teacher.distance(self.student)
        return values, told

    def _share_statistics(self) -> None:
        """Average the running statistics of batch norms that learn over all processes.

        Each sees the images of its own process; without this the averages, which copy them, would
        differ between processes, and a resumed run from one that never stopped.
        """
        if self.fabric.world_size == 1:
            return
        values = [
            value
            for norm in _batch_norms(self.student)
            if norm.training
            for value in (norm.running_mean, norm.running_var)
            if isinstance(value, Tensor)
        ]
        if not values:
            return
        together = torch.cat([value.flatten() for value in values])
        mean = cast(Tensor, self.fabric.all_reduce(together, reduce_op="mean"))
        for value, part in zip(values, mean.split([len(v) for v in values]), strict=True):
            value.copy_(part)

    def _refuse(self, batch: Batch, losses: Mapping[str, float], rate: float) -> None:
        """Save the batch that gave a non-finite loss and stop."""
        path = self.settings.out / NONFINITE_FILE
        if self.fabric.is_global_zero:
            write_atomically(
                path,
                {
                    "step": self.step,
                    "losses": dict(losses),
                    "lr": rate,
                    "images": batch.images,
                    "sizes": batch.sizes,
                    "boxes": list(batch.boxes),
                    "labels": list(batch.labels),
                    "image_ids": list(batch.image_ids),
                    "file_names": list(batch.file_names),
                    "state_dict": self.student.state_dict(),
                },
            )
        bad = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
        advice = f"lower schedule.lr (now {self.recipe.schedule.lr:g})"
        if self.recipe.schedule.clip_norm is None:
            advice += ", set -o schedule.clip_norm=10"
        if self.recipe.precision != "32-true":
            advice += ", use --precision 32-true"
        raise NonFiniteLossError(
            f"the loss {bad} is not finite at step {self.step}; the batch "
            f"({', '.join(batch.file_names)}) is saved in {path}, the weights are those of the "
            f"last save; {advice}, or lengthen schedule.warmup_steps "
            f"(now {self.recipe.schedule.warmup_steps})"
        )

    def is_complete(self) -> bool:
        """Whether the last step and its validation are done."""
        last = self.recipe.schedule.max_iters
        return self.step >= last and self.validated_step == self.step

    def opening_lines(self) -> list[str]:
        """Return what is worth saying before the first step."""
        parameters = sum(value.numel() for value in self.student.parameters())
        lines = [
            *self.images.notes,
            f"data: {counted(len(self.images), 'image')}, "
            f"{counted(self.images.num_boxes, 'box')}, "
            f"{counted(len(self.images.classes), 'class')}",
            f"network: {self.recipe.model.backbone}, {parameters / 1e6:.1f} M parameters; "
            f"device {self.fabric.device}, {counted(self.fabric.world_size, 'process')}, "
            f"{self.recipe.precision}" + (", compiled" if self.settings.compiled else ""),
        ]
        if self.transfer is not None:
            lines.append(f"start from {self.settings.weights}:")
            lines += [f"  {line}" for line in self.transfer.lines()]
        if self.step:
            lines.append(f"resumed after step {self.step}")
        lines.append(f"run folder: {self.settings.out}")
        return lines

    # ---- saving and scoring ---------------------------------------------------------------

    def model_metadata(self) -> dict[str, Any]:
        """Return what a model file says about its run."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": dict(self.identity),
            "step": self.step,
            "best": {"score": self.best.score, "step": self.best.step},
        }

    def save(self) -> None:
        """Write trainer.pt and last.pt; all processes call this together."""
        generators = _gather(self.fabric, capture_random(self.fabric.device))
        own = _gather(self.fabric, self.supervision.own_state())
        if self.fabric.is_global_zero:
            metadata = self.model_metadata()
            save_trainer_state(
                self.settings.out / TRAINER_FILE,
                TrainerState(
                    step=self.step,
                    model=model_payload(self.student, metadata=metadata),
                    supervision=self.supervision.shared_state(),
                    own_supervision=own,
                    optimizer=self.optimizer.state_dict(),
                    criterion=self.criterion.state_dict(),
                    precision=dict(self.fabric.strategy.precision.state_dict()),
                    random=generators,
                    recipe=self.recipe.model_dump(mode="json"),
                    data=self.identity,
                    validated_step=self.validated_step,
                    best=self.best,
                ),
            )
            self.saved_step = self.step
            network, weights = self.shipped
            save_model(self.settings.out / LAST_FILE, network, weights=weights, metadata=metadata)
        self.fabric.barrier()

    def start_folder(self) -> None:
        """Make the run folder with its config.yaml.

        Raises:
            FolderInUseError: in all processes, if another run has begun in it.
        """
        refusal = self._take_folder() if self.fabric.is_global_zero else None
        refusal = self.fabric.broadcast(refusal)
        if refusal is not None:
            raise FolderInUseError(refusal)
        if self.fabric.is_global_zero:
            remove_torn_files(self.settings.out)
            path = self.settings.out / CONFIG_FILE
            temporary = path.with_suffix(".tmp")
            temporary.write_text(recipe_yaml(self.recipe), encoding="utf-8")
            os.replace(temporary, path)
        self.fabric.barrier()

    def _take_folder(self) -> str | None:
        """Make and lock the run folder; return why it cannot be had."""
        out = self.settings.out
        out.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            return None
        try:
            self._lock.take()
        except FolderInUseError as error:
            return str(error)
        if not self.settings.resume and any(entry.name != LOCK_FILE for entry in out.iterdir()):
            return (
                f"another run began in {out} while this one was being built; continue that one "
                "with --resume, or name a new folder with --out"
            )
        return None

    def _validation_due(self) -> bool:
        every = self.recipe.validation.every_steps
        at_end = self.step >= self.recipe.schedule.max_iters
        return at_end or (every is not None and self.step % every == 0)

    def _validate(self, reports: Reports) -> None:
        """Score the network that ships, keep it if it is the best, and report."""
        self.student.eval()
        self._draw_lesson()
        self._score(reports)
        self.validated_step = self.step
        self.save()

    def _draw_lesson(self) -> None:
        """Draw what the last step was taught."""
        if self._lesson is not None and self.fabric.is_global_zero:
            draw_lesson(self._lesson, self.images.classes, self.settings.out / PSEUDO_FILE)

    def _score(self, reports: Reports) -> None:
        """Score what ships; all processes call this together, the first one has the numbers."""
        if self.validation_file is None:
            reports.note(f"not validated: there is no {self.settings.data / VALIDATION_JSON}")
            return
        network, weights = self.shipped
        accuracy = self._accuracy(network)
        student = None if network is self.student else self._accuracy(self.student)
        if accuracy is None:
            return
        by_masks = self.recipe.uses_masks
        score = validation_score(accuracy, by_masks=by_masks)
        beside = {} if student is None else {"student": student}
        improved = score >= self.best.score  # of equals, the one that trained longer
        if improved:
            self.best = Best(score, self.step)
            save_model(
                self.settings.out / BEST_FILE,
                network,
                weights=weights,
                metadata=self.model_metadata(),
            )
        reports.validation(self.step, accuracy, score=score, improved=improved, beside=beside)
        if student is not None:
            finding = lagging_average(
                score, validation_score(student, by_masks=by_masks), by_masks=by_masks
            )
            if finding:
                reports.note(finding)
        reports.pictures(self._segmenter(network), self.validation_file, self.settings.data)

    def _segmenter(self, network: Student) -> Segmenter:
        return Segmenter(TorchBackend(network, str(self.fabric.device)), conf=0.0)

    def _accuracy(self, network: Student) -> Accuracy | None:
        """Score one set of weights on val.json; every process predicts its share of the images.

        Returns:
            None in all processes but the first.
        """
        assert self.validation_file is not None

        def heed_interrupts(_done: int, _total: int) -> None:
            if self.interrupts.asked:
                raise RunInterruptedError(self.step)

        segmenter = self._segmenter(network)
        examination = open_examination(
            segmenter, self.validation_file, max_images=self.recipe.validation.max_images
        )
        own: dict[int, Found] = {}
        with contextlib.suppress(RunInterruptedError):  # the others must hear of it
            own = answer_examination(
                segmenter,
                examination,
                self.settings.data,
                share=(self.fabric.global_rank, self.fabric.world_size),
                progress=heed_interrupts,
            )
        if self._asked_to_stop():
            raise RunInterruptedError(self.step)
        answers = _gather_to_first(self.fabric, own)
        return judge(examination, answers) if self.fabric.is_global_zero else None


def lagging_average(average: float, student: float, *, by_masks: bool) -> str:
    """Return what to say of an average that scores less than its student, nothing if it does not.

    Differences of less than one point are noise of the validation images.

    Args:
        average: Score of the average, in [0, 1]; see `validation_score`.
        student: Score of its student, in [0, 1].
        by_masks: Whether the scores are mask AP.
    """
    if student - average < 0.01:
        return ""
    measure = "mask AP" if by_masks else "box AP x tightness"
    return (
        f"the average scores {100 * average:.1f}, its student {100 * student:.1f} ({measure}): "
        "the average lags; a smaller teacher.momentum follows faster"
    )


def validation_score(accuracy: Accuracy, *, by_masks: bool) -> float:
    """Return the number by which the best weights are chosen, in [0, 1].

    Box AP times tightness of the masks, because users of box supervision have no masks; mask AP
    only where the recipe is supervised by masks.
    """
    if by_masks and accuracy.mask is not None:
        return accuracy.mask.ap or 0.0
    return accuracy.box_quality

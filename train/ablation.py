"""`boxseg ablate`: what each part of the method adds, paired and resumable.

For every data set and seed BoxInst is trained once; then every row, BoxInst itself too, continues
from that checkpoint over the same images in the same order. Differences between rows are therefore
paired. Every run is the command that a user would type, in a process of its own.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from boxseg.configs import find_recipe
from boxseg.errors import BoxSegError, DataError
from boxseg.train.commands import INTERRUPTED
from boxseg.train.interrupts import Interrupts
from boxseg.train.recipe import read_recipe
from boxseg.train.run_lock import RunLock

RESULTS_FILE = "ablation.json"
TABLE_FILE = "ablation.md"
PLOT_FILE = "ablation.png"
METRICS_FILE = "metrics.csv"
FIRST = "boxinst"
"""The row that the others are compared with."""

PROGRAM = (sys.executable, "-m", "boxseg.train.bound_process")
"""What trains; it is given our process id and the words of a boxseg command."""

_WARM = "{warm}"
"""Stands for the steps over which new terms are warmed up."""

_HALF = "{half}"
"""Stands for half of a row's steps."""

_TEACHER = ("teacher={start: 0}", "model.final_score=sqrt_score0_mask")
_DISTILL = (
    f"terms.pseudo_mask={{warmup_steps: {_WARM}}}",
    f"terms.pseudo_affinity={{warmup_steps: {_WARM}}}",
)
_QUALITY_AWARE = (*_TEACHER, *_DISTILL)
# the terms that it waits for are warm already
_CONSISTENCY = f"terms.depth_consistency={{start_steps: 0, warmup_steps: {_WARM}}}"
# a head that knows nothing yet would halve the logits that the base has learned
_HEAD = f"terms.depth={{warmup_steps: {_HALF}}}"
_EDGES = ("terms.pairwise.threshold=0.1", "terms.pairwise.depth_threshold=0.01")
_PASTE = f"copy_paste={{peer: {{warmup_steps: {_WARM}}}}}"
_PRODUCT = (
    *_QUALITY_AWARE,
    *_EDGES,
    "pseudo_masks={quality_aware: {depth_ranking: 0.3}}",
    _PASTE,
)

_SEMANTIC = (
    "teacher={start: 0}",
    "model.final_score=sqrt_score0_mask",
    "pseudo_masks={semantic: {momentum: 0.99, temperature: 1.0}}",
    f"terms.semantic_mask={{warmup_steps: {_WARM}}}",
)
_PASTED_LOSS = f"terms.pasted_mask={{warmup_steps: {_WARM}}}"
_SEMANTIC_PASTE = ("copy_paste={semantic: {length: 50}}", _PASTED_LOSS)
_PRINTED = "pseudo_masks={semantic: {momentum: 0.99, temperature: 0.1}}"


@dataclass(frozen=True)
class Row:
    """One line of the table: settings on top of the recipe of all rows."""

    name: str
    title: str
    settings: tuple[str, ...]
    """`-o` settings; {warm} stands for the warm-up of new terms, {half} for half of all steps."""
    before: str = FIRST
    """The row that this one adds a part to."""


ROWS: tuple[Row, ...] = (
    Row(
        "condinst",
        "CondInst, true masks (ceiling)",
        ("terms.projection=null", "terms.pairwise=null", "terms.mask_dice={}"),
    ),
    Row(FIRST, "BoxInst", ()),
    # what the rows with a teacher owe to the student's view alone
    Row("view", "BoxInst, photometric view", ("view={}",)),
    Row(
        "boxteacher",
        "BoxTeacher",
        (*_QUALITY_AWARE, "pseudo_masks={box_teacher: {}}"),
    ),
    Row(
        "bqr",
        "box-quality ranking (BQR)",
        (*_QUALITY_AWARE, "pseudo_masks={quality_aware: {fusion: mean, quality: one}}"),
    ),
    Row(
        "qmf",
        "+ quality-aware fusion (QMF)",
        (*_QUALITY_AWARE, "pseudo_masks={quality_aware: {quality: one}}"),
        "bqr",
    ),
    Row(
        "mqs",
        "+ mask-quality scoring (MQS) = QAM",
        (*_QUALITY_AWARE, "pseudo_masks={quality_aware: {}}"),
        "qmf",
    ),
    Row(
        "pc",
        "+ peer-assisted copy-paste (PC) = BoxSeg",
        (*_QUALITY_AWARE, "pseudo_masks={quality_aware: {}}", _PASTE),
        "mqs",
    ),
    Row(
        "pc_random",
        "PC, random peer, random place",
        (
            *_QUALITY_AWARE,
            "pseudo_masks={quality_aware: {}}",
            f"copy_paste={{peer: {{choice: random, place: random, warmup_steps: {_WARM}}}}}",
        ),
        "mqs",
    ),
    Row(
        "pc_random_place",
        "PC, best peer, random place",
        (
            *_QUALITY_AWARE,
            "pseudo_masks={quality_aware: {}}",
            f"copy_paste={{peer: {{place: random, warmup_steps: {_WARM}}}}}",
        ),
        "pc_random",
    ),
    Row(
        "fixed_k",
        "QAM with 10 candidates, not adaptive",
        (*_QUALITY_AWARE, "pseudo_masks={quality_aware: {candidates: 10}}"),
        "mqs",
    ),
    Row(
        "released",
        "QAM as released: 20 candidates, vote, consensus, class check",
        (
            *_QUALITY_AWARE,
            "pseudo_masks={quality_aware: {candidates: 20, fusion: vote, quality: consensus, "
            "class_check: true}}",
        ),
        "mqs",
    ),
    # what the papers' view does to it; the rows above have none
    Row(
        "pc_view",
        "BoxSeg, photometric view",
        (*_QUALITY_AWARE, "view={}", "pseudo_masks={quality_aware: {}}", _PASTE),
        "pc",
    ),
    Row(
        "depth_cold", "BoxInst + depth head at once, depth terms", ("terms.depth={}", _CONSISTENCY)
    ),
    Row("depth", "BoxInst + depth head, depth terms", (_HEAD, _CONSISTENCY)),
    Row(
        "depth_paper",
        "the same, interpolated after the product as in the paper",
        (f"terms.depth={{form: paper, warmup_steps: {_HALF}}}", _CONSISTENCY),
        "depth",
    ),
    Row(
        "pseudo_depth",
        "Pseudo-Depth: + depth-matched masks of a teacher",
        (
            *_TEACHER,
            f"terms.pseudo_mask={{weight: 2.0, target: soft, warmup_steps: {_WARM}}}",
            _HEAD,
            _CONSISTENCY,
            "pseudo_masks={depth_matched: {}}",
        ),
        "depth",
    ),
    Row("depth_edges", "BoxInst, pairs of like colour and depth", _EDGES),
    Row("edges_head", "+ depth head, no consistency", (*_EDGES, _HEAD), "depth_edges"),
    Row("depth_boxseg", "BoxSeg + depth, the product's recipe", _PRODUCT, "pc"),
    Row(
        "product_place",
        "the same, best peer at a random place",
        (*_PRODUCT, f"copy_paste={{peer: {{place: random, warmup_steps: {_WARM}}}}}"),
        "depth_boxseg",
    ),
    Row("product_view", "the same, photometric view", (*_PRODUCT, "view={}"), "depth_boxseg"),
    Row("union", "the same with a depth head", (*_PRODUCT, _HEAD), "depth_boxseg"),
    Row(
        "pasted",
        "the product + SIM's loss on pasted objects",
        (*_PRODUCT, _PASTED_LOSS),
        "depth_boxseg",
    ),
    Row(
        "pasted_view", "the same, photometric view", (*_PRODUCT, _PASTED_LOSS, "view={}"), "pasted"
    ),
    Row("sim_masks", "SIM without its copy-paste", _SEMANTIC),
    Row("sim", "+ its copy-paste = SIM", (*_SEMANTIC, *_SEMANTIC_PASTE), "sim_masks"),
    Row(
        "sim_masks_printed",
        "SIM without its copy-paste, its map as printed",
        (*_SEMANTIC, _PRINTED),
    ),
    Row("sim_printed", "SIM, its map as printed", (*_SEMANTIC, *_SEMANTIC_PASTE, _PRINTED)),
    Row(
        "depth_sim", "SIM, pairs of like colour and depth", (*_EDGES, *_SEMANTIC, *_SEMANTIC_PASTE)
    ),
    Row(
        "jitter5",
        "BoxSeg + depth, boxes jittered by 5 %",
        (*_PRODUCT, "data.box_jitter=0.05"),
        "depth_boxseg",
    ),
    Row(
        "jitter10",
        "BoxSeg + depth, boxes jittered by 10 %",
        (*_PRODUCT, "data.box_jitter=0.1"),
        "depth_boxseg",
    ),
)
"""Rows of Tables 3, 4 and 5 of BoxSeg (arXiv:2504.05137), the depth and SIM rows, and noise."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the runs."""

    config: str
    data: tuple[Path, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    out: Path
    base_iters: int
    iters: int
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "32-true"
    jobs: int = 1


@dataclass(frozen=True)
class Run:
    """One training of the plan."""

    folder: Path
    command: tuple[str, ...]


def base_run(plan: Plan, data: Path, seed: int) -> Run:
    """Return the training that all rows of a data set and seed continue."""
    folder = plan.out / data.name / f"seed{seed}" / "base"
    iters = plan.base_iters
    settings = (
        f"schedule.max_iters={iters}",
        # the rows go on at full rate, so nothing decays here
        "schedule.milestones=[]",
        f"schedule.warmup_steps={max(1, iters // 8)}",
        f"terms.pairwise.warmup_steps={max(1, iters // 4)}",
        "validation.every_steps=null",
    )
    return Run(folder, _command(plan, data, seed, folder, (*settings, *plan.overrides)))


def row_run(plan: Plan, data: Path, seed: int, row: Row) -> Run:
    """Return the training of one row."""
    place = plan.out / data.name / f"seed{seed}"
    steps = {_WARM: max(1, plan.iters // 9), _HALF: max(1, plan.iters // 2)}
    settings = (
        f"schedule.max_iters={plan.iters}",
        "schedule.milestones=[0.7, 0.9]",
        "schedule.warmup_steps=0",
        "terms.pairwise.warmup_steps=0",
        "validation.every_steps=null",
        *plan.overrides,
        *(_filled(setting, steps) for setting in row.settings),
    )
    start = ("--weights", str(place / "base" / "last.pt"))
    return Run(place / row.name, _command(plan, data, seed, place / row.name, settings, start))


def _filled(setting: str, steps: dict[str, int]) -> str:
    """Return a setting with the numbers of steps that its names stand for."""
    for name, number in steps.items():
        setting = setting.replace(name, str(number))
    return setting


def _command(
    plan: Plan,
    data: Path,
    seed: int,
    folder: Path,
    settings: Iterable[str],
    extra: tuple[str, ...] = (),
) -> tuple[str, ...]:
    words = ["train", "--config", plan.config, "--data", str(data), "--out", str(folder)]
    words += ["--seed", str(seed), "--device", plan.device, "--precision", plan.precision]
    for setting in settings:
        words += ["-o", setting]
    return (*words, *extra)


def last_scores(folder: Path, step: int) -> dict[str, float] | None:
    """Return the validation after a step from metrics.csv, or None if the run is not done."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        found = [
            row
            for row in csv.DictReader(file)
            if row["phase"] == "validation" and row["step"] == str(step)
        ]
    if not found:
        return None
    skipped = {"step", "phase"}
    return {name: float(cell) for name, cell in found[-1].items() if cell and name not in skipped}


class AblationError(BoxSegError):
    """A run of the plan failed."""


class Trainings:
    """The processes that train; while `interrupts` are taken over, a request to end reaches all.

    Each saves and ends; those that wait for them, see KeyboardInterrupt. Where this process is
    killed, Linux asks the trainings to end.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.interrupts = Interrupts(self._end)

    def _end(self) -> None:
        with self._lock:
            for process in self._running:
                process.terminate()

    def train(self, words: Sequence[str], log: BinaryIO, threads: int) -> int:
        """Run a command to its end; not for the main thread, which hears the signals meanwhile.

        Args:
            words: The command, without `boxseg`.
            log: Takes what it says.
            threads: Threads of the process.

        Returns:
            Its exit code.

        Raises:
            KeyboardInterrupt: if it was interrupted, or is not begun any more.
        """
        with self._lock:
            if self.interrupts.asked:
                raise KeyboardInterrupt
            # this thread stays as long as the process, as that asks for, see bound_process
            process = subprocess.Popen(
                [*PROGRAM, str(os.getpid()), *words],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            self._running.add(process)
        try:
            code = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
        # a process that does not train yet ends by the signal itself
        if code == INTERRUPTED or (code < 0 and self.interrupts.asked):
            raise KeyboardInterrupt
        return code


def execute(run: Run, threads: int, say: Callable[[str], None], trainings: Trainings) -> float:
    """Train, or go on with a training that was stopped.

    Args:
        run: What to do.
        threads: Threads of the process.
        say: Takes a line for a person.
        trainings: Those that run.

    Returns:
        Seconds that the process took, those of an earlier part not included.

    Raises:
        AblationError: if the process fails, with its last line.
        FolderInUseError: if another process has begun the run and has not saved it yet.
        KeyboardInterrupt: if it is interrupted.
    """
    words = list(run.command)
    if (run.folder / "trainer.pt").is_file():
        if "--weights" in words:  # a resumed run has its own
            place = words.index("--weights")
            del words[place : place + 2]
        words.append("--resume")
    elif run.folder.exists():  # it ended before its first save: there is nothing to go on with
        with RunLock(run.folder) as lock:
            lock.take()
            shutil.rmtree(run.folder)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_suffix(".log")
    begin = time.perf_counter()
    with log.open("ab") as file:
        file.write(f"boxseg {shlex.join(words)}\n".encode())
        file.flush()
        code = trainings.train(words, file, threads)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise AblationError(f"{run.folder} ended with exit code {code}: {lines[-1]}; see {log}")
    seconds = time.perf_counter() - begin
    say(f"{run.folder}: done in {seconds:.0f} s")
    return seconds


def run_plan(plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train whatever of the plan is not trained yet.

    Returns:
        The rows of ablation.json, in the order of the plan.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, when the trainings are saved and over.
    """
    threads = max(1, (os.cpu_count() or 1) // plan.jobs)
    lock = threading.Lock()
    trainings = Trainings()
    path = plan.out / RESULTS_FILE
    known: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    if path.is_file():
        for entry in json.loads(path.read_text(encoding="utf-8")):
            known[_key(entry)] = entry

    def one_base(data: Path, seed: int) -> None:
        run = base_run(plan, data, seed)
        if last_scores(run.folder, plan.base_iters) is None:
            execute(run, threads, say, trainings)

    def one_row(data: Path, seed: int, row: Row) -> None:
        if (data.name, row.name, seed, plan.iters) in known:
            return
        run = row_run(plan, data, seed, row)
        seconds = execute(run, threads, say, trainings)
        scores = last_scores(run.folder, plan.iters)
        if scores is None or "mask_AP" not in scores:
            raise AblationError(f"{run.folder} has no mask AP after step {plan.iters}")
        entry = {
            "data": data.name,
            "recipe": row.name,
            "seed": seed,
            "iterations": plan.iters,
            "box_ap": scores["box_AP"],
            "mask_ap": scores["mask_AP"],
            "mask_ap50": scores["mask_AP50"],
            "mask_ap75": scores["mask_AP75"],
            "student_mask_ap": scores.get("student_mask_AP"),
            "tightness": scores.get("tightness"),
            "seconds": round(seconds, 1),
            "device": _device(plan),
            "base_iterations": plan.base_iters,
        }
        with lock:
            known[_key(entry)] = entry
            plan.out.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(_ordered(plan, known), indent=1) + "\n")
            os.replace(temporary, path)

    cases = [(data, seed) for data in plan.data for seed in plan.seeds]
    # seed by seed, so that a stopped ablation has whole tables of the first ones
    ordered = [(data, seed, row) for seed in plan.seeds for data in plan.data for row in plan.rows]
    with trainings.interrupts:
        _side_by_side(plan.jobs, [partial(one_base, *case) for case in cases])
        _side_by_side(plan.jobs, [partial(one_row, *item) for item in ordered])
    return _ordered(plan, known)


def _side_by_side(jobs: int, work: Sequence[Callable[[], None]]) -> None:
    """Do all work, some at a time; after a failure or Ctrl-C begin nothing more."""
    failed = threading.Event()

    def unless_failed(item: Callable[[], None]) -> None:
        if failed.is_set():
            return
        try:
            item()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(unless_failed, item) for item in work]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _device(plan: Plan) -> str:
    cuda = torch.cuda.is_available() and plan.device != "cpu"
    if cuda:
        return f"{torch.cuda.get_device_name()}, {plan.precision}"
    return f"cpu, {max(1, (os.cpu_count() or 1) // plan.jobs)} thread(s), {plan.precision}"


def _key(entry: dict[str, Any]) -> tuple[str, str, int, int]:
    return entry["data"], entry["recipe"], entry["seed"], entry["iterations"]


def _ordered(
    plan: Plan, known: dict[tuple[str, str, int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return all results, those of the plan first and in its order."""
    keys = [
        (data.name, row.name, seed, plan.iters)
        for data in plan.data
        for row in plan.rows
        for seed in plan.seeds
    ]
    return [known[key] for key in dict.fromkeys([*keys, *known]) if key in known]


@dataclass(frozen=True)
class Difference:
    """Mean paired difference with its standard error."""

    mean: float
    error: float | None
    """None with a single pair."""
    pairs: int

    def __str__(self) -> str:
        """Return +1.2 +- 0.4."""
        spread = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{self.mean:+.1f}{spread}"


def paired(
    entries: Sequence[dict[str, Any]], name: str, other: str, column: str
) -> Difference | None:
    """Return `name` minus `other` over all data sets and seeds that have both, in AP points.

    Args:
        entries: Rows of ablation.json.
        name: Recipe.
        other: The recipe to subtract.
        column: mask_ap, mask_ap75, ...
    """

    def values(recipe: str) -> dict[tuple[str, int], float]:
        return {
            (entry["data"], entry["seed"]): 100 * entry[column]
            for entry in entries
            if entry["recipe"] == recipe
        }

    ours, theirs = values(name), values(other)
    apart = [ours[key] - theirs[key] for key in ours if key in theirs]
    if not apart:
        return None
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None
    return Difference(statistics.mean(apart), error, len(apart))


def table(entries: Sequence[dict[str, Any]], rows: Sequence[Row]) -> list[str]:
    """Return the results as Markdown lines: means per data set, and paired differences."""
    sets = list(dict.fromkeys(entry["data"] for entry in entries))
    head = ["row", *(f"{name}: mask AP (AP75), box AP" for name in sets)]
    head += ["mask AP against BoxInst", "AP75 against BoxInst", "mask AP against", "pairs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        found = [entry for entry in entries if entry["recipe"] == row.name]
        if not found:
            continue
        cells = [row.title]
        for name in sets:
            here = [entry for entry in found if entry["data"] == name]
            mean = {
                key: 100 * statistics.mean(entry[key] for entry in here) if here else math.nan
                for key in ("mask_ap", "mask_ap75", "box_ap")
            }
            cells.append(f"{mean['mask_ap']:.1f} ({mean['mask_ap75']:.1f}), {mean['box_ap']:.1f}")
        first = paired(entries, row.name, FIRST, "mask_ap")
        sharp = paired(entries, row.name, FIRST, "mask_ap75")
        step = paired(entries, row.name, row.before, "mask_ap")
        own = row.name == FIRST
        cells += ["" if own or first is None else str(first)]
        cells += ["" if own or sharp is None else str(sharp)]
        cells += ["" if own or step is None else f"{step} ({row.before})"]
        cells += [str(first.pairs) if first else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(entries: Sequence[dict[str, Any]], rows: Sequence[Row], path: Path) -> None:
    """Draw the paired difference to BoxInst of every row, each pair a dot, the mean a bar."""
    names = [row.name for row in rows if any(entry["recipe"] == row.name for entry in entries)]
    figure = Figure(figsize=(9, 0.4 * len(names) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    base = {
        (entry["data"], entry["seed"]): entry["mask_ap"]
        for entry in entries
        if entry["recipe"] == FIRST
    }
    sets = list(dict.fromkeys(entry["data"] for entry in entries))
    for place, name in enumerate(names):
        for number, data in enumerate(sets):
            apart = [
                100 * (entry["mask_ap"] - base[(data, entry["seed"])])
                for entry in entries
                if entry["recipe"] == name
                and entry["data"] == data
                and (data, entry["seed"]) in base
            ]
            label = data if place == 0 else None
            axes.plot(apart, [place] * len(apart), "o", color=f"C{number}", label=label, alpha=0.7)
        mean = paired(entries, name, FIRST, "mask_ap")
        if mean is not None:
            axes.plot([mean.mean] * 2, [place - 0.3, place + 0.3], color="black")
    axes.axvline(0, color="grey", linewidth=0.8)
    titles = {row.name: row.title for row in rows}
    axes.set_yticks(range(len(names)), [titles[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("mask AP against BoxInst continued from the same checkpoint, points")
    axes.legend(fontsize="small")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)


def _chosen(names: tuple[str, ...]) -> tuple[Row, ...]:
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"{name!r} is not a row; rows: {', '.join(known)}", param_hint="'--row'"
            )
    if not names:
        return ROWS
    return tuple(row for row in ROWS if row.name in names or row.name == FIRST)


@click.command()
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Data folder with true masks in val.json; may be given several times.",
)
@click.option(
    "--config",
    default="boxinst_mobilenetv2",
    show_default=True,
    metavar="NAME|FILE",
    help="A BoxInst recipe; every row changes this one.",
)
@click.option(
    "--seed", "seeds", type=click.IntRange(0), multiple=True, default=(0, 1, 2), help="0, 1, 2."
)
@click.option(
    "--row", "names", multiple=True, metavar="NAME", help="Only these rows (and boxinst)."
)
@click.option(
    "--base-iters", type=click.IntRange(1), default=800, show_default=True, help="BoxInst steps."
)
@click.option(
    "--iters", type=click.IntRange(1), default=800, show_default=True, help="Steps of each row."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Setting of all runs.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["32-true", "bf16-mixed", "16-mixed"]),
    default="32-true",
    show_default=True,
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs side by side."
)
def ablate(
    data: tuple[Path, ...],
    config: str,
    seeds: tuple[int, ...],
    names: tuple[str, ...],
    base_iters: int,
    iters: int,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    precision: str,
    jobs: int,
) -> None:
    """Train the rows of the method's tables and compare them pair by pair.

    Writes ablation.json, ablation.md and ablation.png to --out. Last checkpoints, never the best.
    Stopped, by Ctrl-C, SIGTERM or SIGHUP, it ends its trainings, each saved, and goes on where it
    was when started again; a row that is done is not repeated.
    """
    data = tuple(folder if folder.name not in ("", "..") else folder.resolve() for folder in data)
    for folder in data:
        if [other.name for other in data].count(folder.name) > 1:
            raise click.BadParameter(
                f"more than one folder is named {folder.name}, as the folders of runs and the rows "
                "of the table are; give each data set a name of its own",
                param_hint="'--data'",
            )
        if not (folder / "train.json").is_file() or not (folder / "val.json").is_file():
            raise DataError(f"--data {folder}: it needs train.json and val.json")
    plan = Plan(
        config=config,
        data=data,
        seeds=seeds,
        rows=_chosen(names),
        out=out,
        base_iters=base_iters,
        iters=iters,
        overrides=overrides,
        device=device,
        precision=precision,
        jobs=jobs,
    )
    recipe = find_recipe(config)
    for row in plan.rows:  # find out now, not after hours
        _check_settings(plan, recipe, row)
    _check_device(device, precision)
    _same_plan(plan)
    entries = run_plan(plan, click.echo)
    lines = table(entries, plan.rows)
    (out / TABLE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(entries, plan.rows, out / PLOT_FILE)
    for line in lines:
        click.echo(line)


def _check_settings(plan: Plan, recipe: Path, row: Row) -> None:
    command = row_run(plan, plan.data[0], plan.seeds[0], row).command
    settings = [word for before, word in itertools.pairwise(command) if before == "-o"]
    read_recipe(recipe, settings)


def _check_device(device: str, precision: str) -> None:
    """Refuse what every run would refuse after its start."""
    from boxseg.train.engine import open_fabric

    open_fabric(device, 1, precision)


def _same_plan(plan: Plan) -> None:
    """Refuse to mix results of two plans in one folder."""
    path = plan.out / "plan.json"
    content = {
        key: value
        for key, value in asdict(plan).items()
        if key in ("config", "base_iters", "iters", "overrides", "precision")
    }
    text = json.dumps(content, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise click.UsageError(
            f"--out {plan.out} holds an ablation with other settings ({path}); "
            "name another folder, or go on with the same settings"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

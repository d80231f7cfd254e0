"""`boxseg train`: a recipe and a data folder in, a run folder out."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from boxseg.configs import find_recipe
from boxseg.errors import DataError
from boxseg.train.recipe import Precision, Recipe, read_recipe
from boxseg.train.run_lock import RunLock, refuse_if_in_use

INTERRUPTED = 130
RUNS = Path("runs")


def _run_name(config: str, data: Path, seed: int) -> str:
    """Return <config>-<data>-s<seed>."""
    return f"{Path(config).stem}-{data.resolve().name}-s{seed}"


def _numbered(folder: Path) -> list[Path]:
    """Return the existing ones of folder, folder-2, folder-3, ..., in that order."""
    found = [folder] if folder.exists() else []
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        found.append(candidate)
        number += 1
    return found


def choose_folder(out: Path | None, default: Path, *, resume: bool) -> Path:
    """Return the run folder.

    Args:
        out: What the user asked for, or None.
        default: Where the run goes otherwise; -2, -3, ... is added where it is taken.
        resume: Whether an existing run is to be continued.

    Raises:
        click.UsageError: if the folder is taken, or there is nothing to resume.
        FolderInUseError: if another process trains in a folder that cannot be taken.
    """
    from boxseg.checkpoint import TRAINER_FILE

    if resume:
        folders = [out] if out is not None else _numbered(default)
        for folder in reversed(folders):
            if (folder / TRAINER_FILE).is_file():
                return folder
        for folder in folders:
            refuse_if_in_use(folder)
        raise click.UsageError(
            f"--resume: there is no {TRAINER_FILE} in {out or default}; "
            "give the folder of a started run with --out"
        )
    if out is None:
        taken = len(_numbered(default))
        return default if not taken else default.with_name(f"{default.name}-{taken + 1}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        refuse_if_in_use(out)
        raise click.UsageError(
            f"--out {out} exists and is not empty; continue it with --resume, or name a new folder"
        )
    return out


def _resume_command(
    config: str,
    data: Path,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    devices: int,
    compiled: bool,
) -> str:
    """Return the command line that continues a run."""
    words = ["boxseg", "train", "--config", config, "--data", str(data), "--out", str(out)]
    for override in overrides:
        words += ["-o", override]
    if device != "auto":
        words += ["--device", device]
    if devices != 1:
        words += ["--devices", str(devices)]
    if compiled:
        words.append("--compile")
    return shlex.join([*words, "--resume"])


def _load_recipe(
    config: str | None, out: Path | None, overrides: tuple[str, ...], *, resume: bool
) -> tuple[str, Recipe]:
    """Return the name and the recipe; a run that is resumed brings its own config.yaml."""
    if config is None:
        if not (resume and out is not None):
            raise click.UsageError("--config is missing; give the name of a recipe or a YAML file")
        config = str(out / "config.yaml")
    return config, read_recipe(find_recipe(config), overrides)


@click.command()
@click.option("--config", metavar="NAME|FILE", help="Recipe that ships, or a YAML file.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with train.json and val.json (COCO); file names are relative to it.",
)
@click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting: -o schedule.lr=0.01 -o terms.pairwise.threshold=0.2.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Start from a model file of boxseg; classes are matched by name.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Run folder  [default: runs/NAME, numbered where taken].",
)
@click.option("--name", help="Name under runs/  [default: <config>-<data>-s<seed>].")
@click.option(
    "--device",
    "--accelerator",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda, cuda:N.",
)
@click.option(
    "--devices", type=int, default=1, show_default=True, help="Processes, one per device."
)
@click.option(
    "--precision",
    type=click.Choice(["32-true", "bf16-mixed", "16-mixed"]),
    help="Overrides the recipe's precision.",
)
@click.option("--seed", type=click.IntRange(0), help="Overrides the recipe's seed.")
@click.option(
    "--workers", type=click.IntRange(0), help="Loader processes; never changes the numbers."
)
@click.option(
    "--profile",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Print where the time of so many steps goes, and end; writes nothing.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the student with torch.compile: the first step takes minutes.",
)
@click.option("--strict", is_flag=True, help="Make defects of the data errors, not warnings.")
def train(
    config: str | None,
    data: Path,
    overrides: tuple[str, ...],
    weights: Path | None,
    resume: bool,
    out: Path | None,
    name: str | None,
    device: str,
    devices: int,
    precision: Precision | None,
    seed: int | None,
    workers: int | None,
    profile: int | None,
    compiled: bool,
    strict: bool,
) -> None:
    """Train a network from boxes.

    Writes best.pt, last.pt, trainer.pt, config.yaml, metrics.csv, TensorBoard, curves.png and
    predictions.png to the run folder. Ctrl-C finishes the step and saves; --resume goes on.
    """
    if resume and weights is not None:
        raise click.UsageError("--weights starts a new run; it cannot go with --resume")
    flags = {"precision": precision, "seed": seed, "data.workers": workers}
    settings = overrides + tuple(
        f"{key}={value}" for key, value in flags.items() if value is not None
    )
    if profile is not None and resume:
        raise click.UsageError("--profile measures a fresh run; give --weights, not --resume")
    if name is not None and out is not None:
        raise click.UsageError("--name and --out both name the run folder; give one")
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise click.UsageError(f"--name is a folder under {RUNS}/, got {name!r}; see --out")
    config, recipe = _load_recipe(config, out, settings, resume=resume)
    _check_files(data, weights)
    if profile is not None:
        _profile(recipe, data, weights, device, devices, compiled, strict, profile)
        return
    default = RUNS / (name or _run_name(config, data, recipe.seed))
    if name is not None and not resume:
        out = default
    folder = choose_folder(out, default, resume=resume)
    _run(
        *(recipe, config, data, folder, settings, weights),
        *(device, devices, compiled, resume, strict),
    )


def _check_files(data: Path, weights: Path | None) -> None:
    """Refuse wrong paths before torch is loaded."""
    if not data.is_dir():
        raise DataError(f"--data: there is no folder {data}")
    if not (data / "train.json").is_file():
        raise DataError(
            f"--data {data}: it holds no train.json; a data folder has train.json "
            "and val.json in COCO form"
        )
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"--weights: there is no file {weights}")


def _profile(
    recipe: Recipe,
    data: Path,
    weights: Path | None,
    device: str,
    devices: int,
    compiled: bool,
    strict: bool,
    steps: int,
) -> None:
    """Print where the time of a step goes."""
    from boxseg.train.engine import Engine, RunSettings

    settings = RunSettings(
        data=data,
        out=Path(),
        device=device,
        devices=devices,
        weights=weights,
        strict=strict,
        compiled=compiled,
    )
    engine = Engine(recipe, settings)
    opening = engine.opening_lines()[:-1]  # before steps are made, which are no resumed run's
    profile = engine.profile(steps)
    if engine.fabric.is_global_zero:
        for line in (*opening, *profile.lines()):
            click.echo(line)


def _run(
    recipe: Recipe,
    config: str,
    data: Path,
    folder: Path,
    overrides: tuple[str, ...],
    weights: Path | None,
    device: str,
    devices: int,
    compiled: bool,
    resume: bool,
    strict: bool,
) -> None:
    """Train, and say how to go on when interrupted."""
    from boxseg.train.engine import Engine, RunInterruptedError, RunSettings
    from boxseg.train.reports import Reports

    settings = RunSettings(
        data=data,
        out=folder,
        device=device,
        devices=devices,
        weights=weights,
        resume=resume,
        strict=strict,
        compiled=compiled,
    )
    with RunLock(folder) as lock:
        engine = Engine(recipe, settings, lock)
        first = engine.fabric.is_global_zero
        reports = Reports(
            folder,
            first_step=engine.step,
            last_step=recipe.schedule.max_iters,
            enabled=first,
        )
        for line in engine.opening_lines():
            reports.note(line)
        if resume and engine.is_complete():
            reports.note(f"nothing to do: {folder} is complete after step {engine.step}")
            return
        engine.start_folder()
        if lock.note is not None:
            reports.note(lock.note)
        try:
            engine.fit(reports)
        except RunInterruptedError as stop:
            if first:
                again = _resume_command(config, data, folder, overrides, device, devices, compiled)
                click.echo(
                    f"interrupted: saved after step {stop.step} of {recipe.schedule.max_iters}; "
                    f"continue with: {again}",
                    err=True,
                )
            raise SystemExit(INTERRUPTED) from None

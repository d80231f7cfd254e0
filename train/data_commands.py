"""`boxseg data`: render scenes, check annotation files."""

import sys
from collections import deque
from pathlib import Path

import click

from boxseg.errors import BoxSegError, DataError
from boxseg.train.data_check import Report, check_annotations, write_repaired
from boxseg.train.scenes import SMALLEST_SCENE, Difficulty, write_scenes

_ENOUGH_OBJECTS = 200
"""Objects from which on a mean says something about the renderer."""


@click.group()
def data() -> None:
    """Render scenes and check annotation files."""


@data.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Number of training scenes.",
)
@click.option(
    "--val",
    type=click.IntRange(min=1),
    default=None,
    help="Number of validation scenes.  [default: a fifth of --images]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed; the same arguments give the same files.",
)
@click.option(
    "--size",
    type=click.IntRange(min=SMALLEST_SCENE, max=4096),
    nargs=2,
    default=(256, 320),
    show_default=True,
    help="Height and width in pixels.",
)
def scenes(out: Path, images: int, val: int | None, seed: int, size: tuple[int, int]) -> None:
    """Render textured objects on textured grounds into OUT, in COCO format.

    Writes OUT/images, OUT/depth, OUT/train.json and OUT/val.json with exact boxes, masks (for
    scoring only) and inverse depth, and prints how difficult the scenes are.
    """
    val_images = max(1, images // 5) if val is None else val
    steps = write_scenes(out, images=images, seed=seed, val_images=val_images, size=size)
    last: deque[Difficulty] = deque(maxlen=1)
    with click.progressbar(
        steps, length=images + val_images, label="scenes", hidden=not sys.stdout.isatty()
    ) as bar:
        last.extend(bar)
    difficulty = last.pop()
    click.echo(
        f"{out}: {images} training and {val_images} validation scenes of "
        f"{size[0]} x {size[1]} pixels, {difficulty.objects} objects\n{difficulty}"
    )
    if not difficulty.holds and difficulty.objects >= _ENOUGH_OBJECTS:
        raise BoxSegError("the scenes are easier than they claim to be; see the two numbers above")


def _summary(report: Report, fixed: Path | None) -> list[str]:
    """Closing lines: defects by kind, and what was repaired."""
    lines = [f"{count:8} {kind}" for kind, count in sorted(report.counts.items())]
    if fixed is not None:
        lines.append(
            f"{fixed}: written, with these repairs:" if report.defects else f"{fixed}: written"
        )
        lines += [f"{count:8} {repair}" for repair, count in report.repairs.items() if repair]
        if report.repairs[""]:
            lines.append(
                f"{report.repairs['']:8} left as they are: "
                "that is for the recipe, or for a person, to change"
            )
    return lines


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that file names are relative to.  [default: the folder of FILE]",
)
@click.option(
    "--flip",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Whether the recipe mirrors images; with on, class names with left or right are defects.",
)
@click.option(
    "--fix",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write a repaired copy of FILE here. Its file names stay relative to the same folder.",
)
def check(file: Path, images: Path | None, flip: str, fix: Path | None) -> None:
    """List every defect of the COCO annotations FILE and of its images.

    One line per defect with image and annotation id. Ends with exit code 0 if FILE is sound and
    with 3 if anything is wrong with it, also if --fix repaired a copy.
    """
    if fix is not None and fix.exists() and file.exists() and fix.samefile(file):
        raise click.BadParameter(f"{fix} is FILE itself; name another file", param_hint="--fix")
    with click.progressbar(
        length=0, label="images", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        report = check_annotations(file, images, flip=flip == "on", progress=progress)
    for defect in report.defects:
        click.echo(str(defect))
    for remark in report.remarks:
        click.echo(f"note: {remark}")
    if fix is not None:
        write_repaired(report, fix)
    for line in _summary(report, fix):
        click.echo(line)
    size = f"{report.images} images, {report.annotations} annotations"
    if report.defects:
        raise DataError(f"{file}: {len(report.defects)} defects in {size}")
    click.echo(f"{file}: {size}, no defects")

"""`boxseg data`: render scenes, check annotation files."""

from collections import deque
from pathlib import Path

import click

from boxseg.errors import BoxSegError
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
    with click.progressbar(steps, length=images + val_images, label="scenes") as bar:
        last.extend(bar)
    difficulty = last.pop()
    click.echo(
        f"{out}: {images} training and {val_images} validation scenes of "
        f"{size[0]} x {size[1]} pixels, {difficulty.objects} objects\n{difficulty}"
    )
    if not difficulty.holds and difficulty.objects >= _ENOUGH_OBJECTS:
        raise BoxSegError("the scenes are easier than they claim to be; see the two numbers above")

"""`boxseg data`: render scenes, convert data sets, check annotation files, make depth maps."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress

from boxseg.errors import BoxSegError, DataError, counted
from boxseg.train.data_check import Report, check_annotations, finds_images, write_repaired
from boxseg.train.data_layouts import Written, write_cityscapes, write_voc
from boxseg.train.depth_maps import (
    DEFAULT_DIVISOR,
    DEFAULT_SHORT_SIDE,
    TRANSFORMERS,
    DepthPredictor,
    DepthReport,
    InputRange,
    OnnxDepth,
    TransformersDepth,
    inverted,
    make_depth_maps,
)
from boxseg.train.scenes import SMALLEST_SCENE, Difficulty, write_scenes

_ENOUGH_OBJECTS = 200
"""Objects from which on a mean says something about the renderer."""


@click.group()
def data() -> None:
    """Render scenes, convert data sets, check annotation files, make depth maps."""


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
        f"{out}: {images} training and {counted(val_images, 'validation scene')} of "
        f"{size[0]} x {size[1]} pixels, {counted(difficulty.objects, 'object')}\n{difficulty}"
    )
    if not difficulty.holds and difficulty.objects >= _ENOUGH_OBJECTS:
        raise BoxSegError("the scenes are easier than they claim to be; see the two numbers above")


@contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on a terminal; what is yielded takes the number done and the number of all."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell_written(files: Sequence[Written], unjudged: str) -> None:
    """Print what a converted data set holds."""
    for file in files:
        click.echo(
            f"{file.path}: {counted(file.images, 'image')}, {counted(file.objects, 'object')}; "
            f"{unjudged}: {file.unjudged}"
        )
        for note in file.notes:
            click.echo(f"  {note}")


_boxes_only = click.option(
    "--boxes-only", is_flag=True, help="Leave masks out of train.json; val.json is scored by them."
)


@data.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--train-list",
    type=click.Path(path_type=Path),
    default=None,
    help="Names of the images to train on, such as SBD's train_aug, whose masks are not in ROOT: "
    "add --boxes-only.  [default: ROOT/ImageSets/Segmentation/train.txt]",
)
@_boxes_only
def voc(root: Path, out: Path | None, train_list: Path | None, boxes_only: bool) -> None:
    """Write OUT/train.json and OUT/val.json for Pascal VOC 2012 in ROOT.

    ROOT is the folder VOC2012 and, unless given, OUT too. Images stay where they are; another OUT
    gets a link to them. The sets are those of ImageSets/Segmentation, boxes those of Annotations,
    masks those of SegmentationObject. Difficult objects are neither targets nor judged.

    Masks end at a border inside their boxes, so that boxseg data check calls some boxes loose. They
    are as published; with --fix, boxes would be made from masks.
    """
    with _progress_bar("images") as progress:
        files = write_voc(
            root, out, train_list=train_list, boxes_only=boxes_only, progress=progress
        )
    _tell_written(files, "difficult or without a mask")


@data.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@_boxes_only
def cityscapes(root: Path, out: Path | None, boxes_only: bool) -> None:
    """Write OUT/train.json and OUT/val.json for Cityscapes in ROOT.

    ROOT holds gtFine and leftImg8bit and is, unless given, OUT too. Images stay where they are;
    another OUT gets a link to them. Boxes and masks of the 8 classes are those of
    *_gtFine_instanceIds.png. Groups are crowds, neither targets nor judged.
    """
    with _progress_bar("images") as progress:
        files = write_cityscapes(root, out, boxes_only=boxes_only, progress=progress)
    _tell_written(files, "groups")


def _summary(report: Report, root: Path, fixed: Path | None) -> list[str]:
    """Closing lines: defects by kind, what was repaired, and where the copy belongs."""
    lines = [f"{count:8} {kind}" for kind, count in sorted(report.counts.items())]
    if fixed is not None:
        repairs = [f"{count:8} {repair}" for repair, count in report.repairs.items() if repair]
        lines.append(f"{fixed}: written" + (", with these repairs:" if repairs else ""))
        lines += repairs
        if report.repairs[""]:
            lines.append(
                f"{report.repairs['']:8} left as they are: "
                "that is for the recipe, or for a person, to change"
            )
        if not finds_images(report, fixed.parent):
            lines.append(
                f"{fixed}: its file names are relative to {root}: move it there, or check it with "
                f"--images {root}"
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
    help="Whether the recipe mirrors images; with on, class names with left or right are defects. "
    "Say off also where data.flip swaps them.",
)
@click.option(
    "--fix",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write a repaired copy of FILE here, best beside FILE: its file names stay relative to "
    "the same folder, and elsewhere its images are not found.",
)
def check(file: Path, images: Path | None, flip: str, fix: Path | None) -> None:
    """List every defect of the COCO annotations FILE and of its images.

    One line per defect with image and annotation id. Ends with exit code 0 if FILE is sound and
    with 3 if anything is wrong with it, also if --fix repaired a copy.
    """
    root = file.parent if images is None else images
    if fix is not None and fix.exists() and file.exists() and fix.samefile(file):
        raise click.BadParameter(f"{fix} is FILE itself; name another file", param_hint="--fix")
    with click.progressbar(
        length=0, label="images", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        report = check_annotations(file, root, flip=flip == "on", progress=progress)
    for defect in report.defects:
        click.echo(str(defect))
    for remark in report.remarks:
        click.echo(f"note: {remark}")
    if fix is not None:
        write_repaired(report, fix)
    for line in _summary(report, root, fix):
        click.echo(line)
    size = f"{counted(report.images, 'image')}, {counted(report.annotations, 'annotation')}"
    if report.defects:
        raise DataError(f"{file}: {counted(len(report.defects), 'defect')} in {size}")
    click.echo(f"{file}: {size}, no defects")


def _depth_lines(folder: Path, report: DepthReport) -> list[str]:
    """Closing lines: what was made, and whether it looks like inverse depth."""
    lines = [
        f"{folder}: {counted(report.images, 'image')}; {counted(report.made, 'depth map')} made, "
        f"{report.kept} there before"
    ]
    lines += [f"{path}: depth_file_name entered" for path in report.written]
    if report.flat:
        lines.append(
            f"warning: {counted(report.flat, 'flat map')}; does --input-range fit the network?"
        )
    if report.boxes:
        share = report.nearer / report.boxes
        lines.append(
            f"{share:.0%} of {counted(report.boxes, 'box')} nearer than what surrounds them"
            + (
                ""
                if share > 0.5
                else "; more than half should be: see --input-range, --invert and --overwrite"
            )
        )
    return lines


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--predictor",
    required=True,
    metavar=f"FILE.onnx|{TRANSFORMERS}NAME",
    help="Depth network: an ONNX file, or a name of Hugging Face's depth-estimation pipeline.",
)
@click.option(
    "--input-range",
    type=click.Choice(["0..255", "0..1", "imagenet"]),
    default="imagenet",
    show_default=True,
    help="RGB values that an ONNX network of float input expects; imagenet is 0..1 normalised.",
)
@click.option(
    "--imgsz",
    type=click.IntRange(min=32),
    default=DEFAULT_SHORT_SIDE,
    show_default=True,
    help="Short side that an ONNX network of free size sees, pixels.",
)
@click.option(
    "--divisor",
    type=click.IntRange(min=1),
    default=DEFAULT_DIVISOR,
    show_default=True,
    help="Both sides are rounded up to a multiple of this; networks on 14 x 14 patches need 14.",
)
@click.option("--invert", is_flag=True, help="The network predicts distance, not inverse depth.")
@click.option(
    "--out-bits",
    type=click.Choice(["16", "8"]),
    default="16",
    show_default=True,
    help="Of the PNG.",
)
@click.option("--overwrite", is_flag=True, help="Make maps anew that are there.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the network runs.",
)
@click.pass_context
def depth(
    context: click.Context,
    folder: Path,
    predictor: str,
    input_range: InputRange,
    imgsz: int,
    divisor: int,
    invert: bool,
    out_bits: str,
    overwrite: bool,
    device: str,
) -> None:
    """Predict a depth map for every image of DIR/train.json and DIR/val.json.

    Writes DIR/depth/*.png, inverse depth from each image's farthest (0) to its nearest point, and
    enters depth_file_name in the two files. Maps that are there stay; after an interrupt the same
    command goes on. Networks come with licences of their own; none is shipped.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    network: DepthPredictor
    if predictor.startswith(TRANSFORMERS):
        for name in ("input_range", "imgsz", "divisor"):
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is for ONNX files; transformers prepares its "
                    "images itself"
                )
        network = TransformersDepth(predictor.removeprefix(TRANSFORMERS), device=device)
    else:
        network = OnnxDepth(
            Path(predictor),
            input_range=input_range,
            short_side=imgsz,
            divisor=divisor,
            device=device,
        )
    if invert:
        network = inverted(network)
    with _progress_bar("depth maps") as progress:
        report = make_depth_maps(
            folder, network, bits=int(out_bits), overwrite=overwrite, progress=progress
        )
    for line in _depth_lines(folder, report):
        click.echo(line)
    if report.unreadable:
        raise DataError(
            f"{folder}: {len(report.unreadable)} of {counted(report.images, 'image')} without a "
            f"depth map, because unreadable; first: {report.unreadable[0]}"
        )

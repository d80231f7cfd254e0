"""Rendered scenes with exact boxes, masks and depth: the embedded default data.

Letters: H x W pixels of the scene, N objects. Colours are RGB in 0..255, as float32 until the image
is written. Positions are x, y in pixels, the centre of the first pixel at 0.5.

A scene is a textured ground and two to five textured objects that occlude one another in the order
of their depth. Every object has two or three tones of which one belongs to its class and the others
are anyone's, and the tones of one object differ from each other about as much as from the ground.
So a split by colour does not find the object (`measure_difficulty` holds that), while nearly every
point of its outline is an edge, and inside a patch of one tone neighbouring pixels are alike.

Everything follows from (seed, split, index of the scene): a scene does not depend on how many
others are rendered.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from boxseg.train.annotation_table import refuse_foreign_folder

CLASSES = ("star", "ring", "crescent", "l_shape", "figure", "blob")
"""Class names; category ids count from 1 in this order."""

GREATEST_BOX_IOU = 0.50
"""Greatest mean IoU of filled true boxes with masks that still counts as difficult."""
GREATEST_SPLIT_IOU = 0.60
"""Greatest mean IoU of the best two-cluster colour split that still counts as difficult."""

SMALLEST_SCENE = 96
"""Least height and width of a scene in pixels."""

_DESCRIPTION = "rendered scenes of boxseg"
_SUPERSAMPLING = 4
_SMALLEST_VISIBLE = 0.6
"""Least visible share of an object inside the frame; what shows less is taken out of the scene."""

_Floats = NDArray[np.float32]
_Random = np.random.Generator
_Points = NDArray[np.float64]
_Stroke = tuple[_Points, int]
"""An outline in object units and what it fills with: 255 adds, 0 cuts away."""


@dataclass(frozen=True)
class SceneObject:
    """What is visible of one object."""

    label: int
    """Index into CLASSES."""
    mask: NDArray[np.bool_]
    """Visible pixels, (H, W)."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 around the visible pixels."""


@dataclass(frozen=True)
class Scene:
    """A rendered image and the whole truth about it."""

    image: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    depth: NDArray[np.uint8]
    """Inverse depth of the surface each pixel shows, larger is nearer, (H, W)."""
    objects: tuple[SceneObject, ...]


# Colour


def _lab_to_rgb(lab: Sequence[float]) -> _Floats:
    """One colour of CIE Lab (D65) as sRGB in 0..255, clipped to what a screen shows."""
    fy = (lab[0] + 16) / 116
    planes = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    linear_planes = np.where(planes > 6 / 29, planes**3, 3 * (6 / 29) ** 2 * (planes - 4 / 29))
    xyz = linear_planes * np.array([0.95047, 1.0, 1.08883])
    matrix = np.array(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    )
    linear = np.clip(matrix @ xyz, 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.asarray(encoded * 255, dtype=np.float32)


def _rgb_to_lab(pixels: NDArray[Any]) -> _Floats:
    """Colours in 0..255 as CIE Lab (D65), (..., 3)."""
    encoded = np.asarray(pixels, dtype=np.float32) / 255
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = linear @ (matrix / np.array([[0.95047], [1.0], [1.08883]])).T
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def _polar_tone(lightness: float, chroma: float, hue_degrees: float) -> list[float]:
    """A Lab colour from lightness, chroma and hue."""
    hue = math.radians(hue_degrees)
    return [lightness, chroma * math.cos(hue), chroma * math.sin(hue)]


def _ground_tones(random: _Random) -> list[list[float]]:
    """Two or three tones of one muted hue in Lab, for the ground."""
    hue = random.uniform(0, 360)
    middle = random.uniform(42, 64)
    spread = random.uniform(10, 18)
    chroma = random.uniform(4, 22)
    count = int(random.integers(2, 4))
    return [
        _polar_tone(
            middle + offset * spread + random.uniform(-2, 2),
            chroma * random.uniform(0.7, 1.3),
            hue + random.uniform(-18, 18),
        )
        for offset in np.linspace(-1, 1, count)
    ]


_CLASS_HUES = (88.0, 28.0, 265.0, 145.0, 320.0, 205.0)
"""Hue in Lab, degrees, of the one tone that belongs to a class."""


def _object_tones(random: _Random, label: int, ground: Sequence[Sequence[float]]) -> list[_Floats]:
    """Two or three tones as RGB, some lighter and some darker than the ground.

    The first belongs to the class. The second is anyone's and on the other side of the ground's
    lightness, so that two clusters of colour part the object rather than the object and the
    ground. A third lies between them.
    """
    middle = sum(tone[0] for tone in ground) / len(ground)
    best: list[list[float]] = []
    best_distance = -1.0
    for _ in range(24):
        side = random.choice((-1.0, 1.0))
        first, second = (
            float(np.clip(middle + sign * side * random.uniform(27, 37), 10, 94))
            for sign in (1, -1)
        )
        hue = _CLASS_HUES[label] + random.uniform(-16, 16)
        tones = [
            _polar_tone(first, random.uniform(24, 42), hue),
            _polar_tone(second, random.uniform(16, 34), hue + random.uniform(-40, 40)),
        ]
        if random.random() < 0.3:
            tones.append(_polar_tone(middle, random.uniform(26, 42), hue))
        distance = min(math.dist(tone, other) for tone in tones for other in ground)
        if distance > best_distance:
            best, best_distance = tones, distance
        if distance >= 20:
            break
    return [_lab_to_rgb(tone) for tone in best]


# Textures


@dataclass(frozen=True)
class _Cloth:
    """What a texture is made on."""

    along: _Floats
    """Pixel coordinate that turns with the object, (H, W)."""
    across: _Floats
    tones: Sequence[_Floats]
    cell: float
    """Size of the texture's parts in pixels."""


_Texture = Callable[[_Random, _Cloth], _Floats]


def _pick(indices: NDArray[Any], tones: Sequence[_Floats]) -> _Floats:
    """Tone of each pixel from an index map."""
    chosen: _Floats = np.stack(tones)[np.asarray(indices, dtype=np.int64) % len(tones)]
    return chosen


def _blend(first: _Floats, second: _Floats, share: _Floats) -> _Floats:
    """Colours on the way from one tone to another, (H, W, 3)."""
    return np.asarray(first + (second - first) * share[..., None], dtype=np.float32)


def _value_noise(random: _Random, shape: tuple[int, int], cell: float) -> _Floats:
    """Smooth noise in 0..1 whose bumps are about `cell` pixels wide."""
    rows, columns = (max(2, math.ceil(length / cell) + 2) for length in shape)
    lattice = Image.fromarray(random.random((rows, columns), dtype=np.float32))
    size = (math.ceil(columns * cell), math.ceil(rows * cell))
    smooth = np.asarray(lattice.resize(size, Image.Resampling.BICUBIC))
    return np.asarray(smooth[: shape[0], : shape[1]].clip(0, 1), dtype=np.float32)


def _stripes(random: _Random, cloth: _Cloth) -> _Floats:
    """Bands, straight or waved."""
    wave = (
        random.uniform(0, 0.5)
        * cloth.cell
        * np.sin(cloth.across / (cloth.cell * random.uniform(1.2, 2.5)))
    )
    return _pick(np.floor((cloth.along + wave) / cloth.cell + random.random()), cloth.tones)


def _checks(random: _Random, cloth: _Cloth) -> _Floats:
    """A chess board."""
    rows = np.floor(cloth.across / cloth.cell + random.random())
    return _pick(rows + np.floor(cloth.along / cloth.cell + random.random()), cloth.tones)


def _spots(random: _Random, cloth: _Cloth) -> _Floats:
    """Discs on a staggered lattice."""
    pitch = cloth.cell * 1.7
    row = np.floor(cloth.across / pitch)
    shifted = cloth.along / pitch + 0.5 * (row % 2) + random.random()
    distance = np.hypot(shifted - np.floor(shifted) - 0.5, cloth.across / pitch - row - 0.5)
    return _pick(distance < random.uniform(0.30, 0.42), cloth.tones)


def _patches(random: _Random, cloth: _Cloth) -> _Floats:
    """Camouflage: smooth noise cut into levels of equal area."""
    noise = _value_noise(random, cloth.along.shape, cloth.cell * 1.3)
    levels = np.quantile(noise, np.linspace(0, 1, len(cloth.tones) + 1)[1:-1])
    return _pick(np.searchsorted(levels, noise), cloth.tones)


def _halves(random: _Random, cloth: _Cloth) -> _Floats:
    """Sectors around the middle, one after the other in each tone."""
    sectors = 2 * len(cloth.tones)
    angle = np.arctan2(cloth.across, cloth.along) / (2 * math.pi) + random.random()
    return _pick(np.floor(angle * sectors), cloth.tones)


def _fade(random: _Random, cloth: _Cloth) -> _Floats:
    """A gradient from tone to tone and back."""
    phase = 0.5 + 0.5 * np.sin(cloth.along / (cloth.cell * 1.5) + random.uniform(0, 6.28))
    # numpy keeps float32 here
    return _blend(cloth.tones[0], cloth.tones[1], phase)  # pyright: ignore[reportArgumentType]


_OBJECT_TEXTURES: tuple[_Texture, ...] = (_stripes, _checks, _spots, _patches, _halves, _fade)


def _bricks(random: _Random, cloth: _Cloth) -> _Floats:
    """Courses of bricks in all tones but the first, which is the mortar."""
    height, width = cloth.cell, cloth.cell * 2.2
    row = np.floor(cloth.across / height)
    column = np.floor(cloth.along / width + 0.5 * (row % 2))
    in_row = cloth.across / height - row
    in_column = cloth.along / width + 0.5 * (row % 2) - column
    mortar = (in_row < 0.12) | (in_column < 0.055)
    shade = 1 + 0.08 * np.sin(row * 12.9898 + column * 78.233 + random.uniform(0, 6.28))
    brick = _pick(row * 2 + column * 3, cloth.tones[1:]) * shade[..., None]
    return np.where(mortar[..., None], cloth.tones[0], brick)


def _clouds(random: _Random, cloth: _Cloth) -> _Floats:
    """Smooth noise between the first and the last tone, coarse and fine."""
    noise = 0.7 * _value_noise(random, cloth.along.shape, cloth.cell * 3) + 0.3 * _value_noise(
        random, cloth.along.shape, cloth.cell
    )
    # numpy keeps float32 here
    return _blend(cloth.tones[0], cloth.tones[-1], noise)  # pyright: ignore[reportArgumentType]


def _planks(random: _Random, cloth: _Cloth) -> _Floats:
    """Boards with a little grain."""
    board = np.floor(cloth.along / (cloth.cell * 1.6))
    shade = 1 + 0.07 * np.sin(board * 37.7 + random.uniform(0, 6.28))
    grain = 1 + 0.02 * np.sin(cloth.along * 0.9 + 3 * np.sin(cloth.across / 40))
    return np.asarray(_pick(board, cloth.tones) * (shade * grain)[..., None], dtype=np.float32)


_GROUND_TEXTURES: tuple[_Texture, ...] = (_bricks, _clouds, _planks, _checks, _patches)


# Shapes: outlines in object units, about -1..1


def _circle(x: float, y: float, radius: float, squeeze: float = 1.0) -> _Points:
    """A circle, or an ellipse whose height is `squeeze` of its width, as a polygon."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + squeeze * radius * np.sin(angles)], axis=1)


def _capsule(start: _Points, end: _Points, radius: float, end_radius: float) -> list[_Points]:
    """A limb: a tapered bar with round ends."""
    normal = np.array([start[1] - end[1], end[0] - start[0]])
    normal = normal / (np.linalg.norm(normal) + 1e-9)
    bar = np.stack(
        [
            start + normal * radius,
            end + normal * end_radius,
            end - normal * end_radius,
            start - normal * radius,
        ]
    )
    return [
        bar,
        _circle(float(start[0]), float(start[1]), radius),
        _circle(float(end[0]), float(end[1]), end_radius),
    ]


def _star(random: _Random) -> list[_Stroke]:
    """Five or six points."""
    points = int(random.integers(5, 7))
    angles = np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2, random.uniform(0.36, 0.5), 1.0)
    return [(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), 255)]


def _ring(random: _Random) -> list[_Stroke]:
    """A circle or ellipse with a hole."""
    squeeze = random.uniform(0.7, 1.0)
    return [
        (_circle(0, 0, 1.0, squeeze), 255),
        (_circle(0, 0, random.uniform(0.5, 0.66), squeeze), 0),
    ]


def _crescent(random: _Random) -> list[_Stroke]:
    """A disc out of which a shifted disc is cut."""
    shift = random.uniform(0.42, 0.62)
    return [(_circle(0, 0, 1.0), 255), (_circle(shift, 0, random.uniform(0.74, 0.88)), 0)]


def _l_shape(random: _Random) -> list[_Stroke]:
    """Two bars that meet in a corner."""
    upright, foot = random.uniform(0.42, 0.6), random.uniform(0.42, 0.6)
    width, height = random.uniform(0.7, 1.0), 1.0
    outline = [
        (-width, -height),
        (-width + upright, -height),
        (-width + upright, height - foot),
        (width, height - foot),
        (width, height),
        (-width, height),
    ]
    return [(np.array(outline), 255)]


def _limb(
    random: _Random, joint: _Points, length: float, angle: float, bend: float, radius: float
) -> list[_Points]:
    """Two segments with a joint between them; angles in radians from straight down."""
    middle = joint + length * np.array([math.sin(angle), math.cos(angle)])
    angle += bend * random.uniform(-1, 1)
    end = middle + length * np.array([math.sin(angle), math.cos(angle)])
    upper = _capsule(joint, middle, radius, radius * 0.9)
    return upper + _capsule(middle, end, radius * 0.9, radius * 0.8)


def _figure(random: _Random) -> list[_Stroke]:
    """A person with a head, a trunk, and bent arms and legs."""
    parts = [_circle(0, -0.78, 0.22)]
    neck, hip = np.array([0.0, -0.45]), np.array([0.0, 0.12])
    parts += _capsule(neck, hip, 0.23, 0.19)
    for side in (-1.0, 1.0):
        shoulder = np.array([side * 0.18, -0.46])
        parts += _limb(random, shoulder, 0.34, side * random.uniform(0.3, 2.3), 1.1, 0.105)
        leg = np.array([side * 0.10, 0.16])
        parts += _limb(random, leg, 0.42, side * random.uniform(0.05, 0.6), 0.5, 0.125)
    return [(part, 255) for part in parts]


def _blob(random: _Random) -> list[_Stroke]:
    """A smooth closed curve of three random waves."""
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    radii = np.ones_like(angles)
    for waves in (2, 3, 4):
        radii += random.uniform(0.04, 0.16) * np.sin(waves * angles + random.uniform(0, 6.28))
    radii /= radii.max()
    return [(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), 255)]


_SHAPES: tuple[Callable[[_Random], list[_Stroke]], ...] = (
    _star,
    _ring,
    _crescent,
    _l_shape,
    _figure,
    _blob,
)


# Composition


@dataclass(frozen=True)
class _Layer:
    """One object before composition."""

    label: int
    nearness: float
    """Inverse depth at its middle, 0..255."""
    cover: _Floats
    """Share of each pixel that the object covers, (H, W)."""
    colours: _Floats
    depth: _Floats


def _raster(strokes: Sequence[_Stroke], size: tuple[int, int]) -> _Floats:
    """Share of each pixel that outlines in pixels cover, (H, W)."""
    canvas = Image.new("L", (size[1] * _SUPERSAMPLING, size[0] * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for outline, fill in strokes:
        pen.polygon([tuple(point) for point in (outline * _SUPERSAMPLING).tolist()], fill=fill)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _place_object(
    random: _Random, size: tuple[int, int], ground: Sequence[Sequence[float]]
) -> _Layer:
    """Draw one object of any class somewhere in the frame."""
    height, width = size
    unit = min(size) / 256
    label = int(random.integers(len(CLASSES)))
    nearness = random.uniform(110, 235)
    radius = unit * random.uniform(32, 56) * (0.6 + 0.55 * nearness / 235)
    angle = random.uniform(-0.35, 0.35) if CLASSES[label] == "figure" else random.uniform(0, 6.28)
    centre = np.array(
        [random.uniform(0.55 * radius, width - 0.55 * radius),
         random.uniform(0.55 * radius, height - 0.55 * radius)]
    )  # fmt: skip
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    strokes = [
        (outline @ turn.T * radius + centre, fill) for outline, fill in _SHAPES[label](random)
    ]
    cover = _raster(strokes, size)

    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    ys, xs = ys - np.float32(centre[1]), xs - np.float32(centre[0])
    grain = random.uniform(0, math.pi)
    along = math.cos(grain) * xs + math.sin(grain) * ys
    across = math.cos(grain) * ys - math.sin(grain) * xs
    texture = _OBJECT_TEXTURES[int(random.integers(len(_OBJECT_TEXTURES)))]
    cell = unit * random.uniform(17, 28)
    colours = texture(random, _Cloth(along, across, _object_tones(random, label, ground), cell))

    # Light from one side: at most 9 % brighter or darker at the rim of the object.
    light = random.uniform(0, 6.28)
    slope = (math.cos(light) * xs + math.sin(light) * ys) / radius
    colours = colours * (1 + random.uniform(0.02, 0.09) * np.clip(slope, -1, 1))[..., None]
    tilt = random.uniform(0, 8) * np.clip(slope, -1, 1)
    return _Layer(
        label=label,
        nearness=nearness,
        cover=cover,
        colours=colours.astype(np.float32),
        depth=np.asarray(nearness + tilt, dtype=np.float32),
    )


def _visible_shares(layers: Sequence[_Layer]) -> list[_Floats]:
    """Share of each pixel in which each layer is seen; layers lie from far to near."""
    open_share = np.ones_like(layers[0].cover) if layers else np.zeros((0, 0), dtype=np.float32)
    shares: list[_Floats] = []
    for layer in reversed(layers):
        shares.append(layer.cover * open_share)
        open_share = np.asarray(open_share * (1 - layer.cover), dtype=np.float32)
    return shares[::-1]


def _enough_visible(layers: Sequence[_Layer], smallest_area: float) -> list[_Layer]:
    """Take out, one by one, the objects of which too little is seen."""
    kept = list(layers)
    while kept:
        shares = _visible_shares(kept)
        scores = []
        for layer, share in zip(kept, shares, strict=True):
            seen = float((share >= 0.5).sum())
            whole = max(1.0, float((layer.cover >= 0.5).sum()))
            scores.append(seen / whole if seen >= smallest_area else 0.0)
        worst = int(np.argmin(scores))
        if scores[worst] >= _SMALLEST_VISIBLE:
            return kept
        del kept[worst]
    return kept


def _shadow(cover: _Floats, right: int, down: int, radius: float) -> _Floats:
    """Soft shadow of an object: its cover, moved and blurred, in 0..1."""
    picture = Image.fromarray((cover * 255).astype(np.uint8))
    blurred = picture.transform(
        picture.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down)
    ).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def _ground(
    random: _Random, size: tuple[int, int], tones: Sequence[Sequence[float]]
) -> tuple[_Floats, _Floats]:
    """Colours and inverse depth of the ground, (H, W, 3) and (H, W)."""
    height, width = size
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = random.uniform(-0.5, 0.5)
    along = math.cos(angle) * xs + math.sin(angle) * ys
    across = math.cos(angle) * ys - math.sin(angle) * xs
    texture = _GROUND_TEXTURES[int(random.integers(len(_GROUND_TEXTURES)))]
    cell = min(size) / 256 * random.uniform(18, 34)
    colours = texture(random, _Cloth(along, across, [_lab_to_rgb(tone) for tone in tones], cell))
    far, near = random.uniform(8, 30), random.uniform(50, 90)
    depth = np.asarray(far + (near - far) * (ys + 0.5) / height, dtype=np.float32)
    return colours.astype(np.float32), depth


def render_scene(random: _Random, size: tuple[int, int]) -> Scene:
    """Render one scene.

    Args:
        random: Source of everything that varies.
        size: H, W of the scene, at least 96 each.

    Returns:
        The scene, whose objects are listed from far to near. There is at least one.
    """
    height, width = size
    unit = min(size) / 256
    tones = _ground_tones(random)
    colours, depth = _ground(random, size, tones)
    layers: list[_Layer] = []
    while not layers:
        wanted = [_place_object(random, size, tones) for _ in range(int(random.integers(2, 6)))]
        wanted.sort(key=lambda layer: layer.nearness)
        layers = _enough_visible(wanted, smallest_area=400 * unit * unit)

    shift = random.uniform(-5, 5, size=2) * unit
    for layer in layers:
        shadow = _shadow(layer.cover, round(shift[0]), round(abs(shift[1]) + unit), 5 * unit)
        darkness = random.uniform(0.12, 0.28) * shadow
        colours = colours * (1 - darkness)[..., None]
        cover = layer.cover[..., None]
        colours = colours * (1 - cover) + layer.colours * cover

    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    light = random.uniform(0, 6.28)
    slope = math.cos(light) * (xs / width - 0.5) + math.sin(light) * (ys / height - 0.5)
    warmth = random.uniform(-0.05, 0.05)
    brightness = random.uniform(0.88, 1.06) * (1 + random.uniform(0.05, 0.3) * slope)
    colours = colours * brightness[..., None] * np.array([1 + warmth, 1.0, 1 - warmth])
    noise = random.normal(0, random.uniform(1.0, 3.0), size=colours.shape)
    picture = Image.fromarray(np.clip(colours + noise + 0.5, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(0.5))

    objects = []
    for layer, share in zip(layers, _visible_shares(layers), strict=True):
        mask = share >= 0.5
        depth = np.where(mask, layer.depth, depth)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        objects.append(SceneObject(layer.label, mask, box))
    return Scene(
        image=np.asarray(picture),
        depth=np.clip(depth + 0.5, 0, 255).astype(np.uint8),
        objects=tuple(objects),
    )


def scene_random(seed: int, split: int, index: int) -> np.random.Generator:
    """Source of everything that varies in one scene; split 0 is training, 1 validation."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, split, index))))


# Difficulty


@dataclass(frozen=True)
class Difficulty:
    """How far two simple answers come on a set of objects."""

    objects: int
    box_iou: float
    """Mean IoU of the filled true box with the mask."""
    split_iou: float
    """Mean IoU of the best two-cluster colour split inside the true box with the mask."""

    @property
    def holds(self) -> bool:
        """Whether both answers are as poor as they must be."""
        return self.box_iou <= GREATEST_BOX_IOU and self.split_iou <= GREATEST_SPLIT_IOU

    def __str__(self) -> str:
        """Two lines for a person."""
        return (
            f"mean IoU of the filled true box with the mask: {self.box_iou:.3f} "
            f"(at most {GREATEST_BOX_IOU:.2f})\n"
            f"mean IoU of the best two-cluster colour split: {self.split_iou:.3f} "
            f"(at most {GREATEST_SPLIT_IOU:.2f})"
        )


def colour_split_iou(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """IoU with a mask of the best split of the pixels of its box into two clusters of colour.

    Two-means in Lab, begun once from a cut at the mean along each of the three principal axes; the
    split with the least spread counts, and of its two clusters the one that agrees better with the
    mask. Boxes of more than 48 pixels in a side are read at every second pixel.

    Args:
        image: RGB pixels inside the box, (h, w, 3).
        mask: The object's pixels inside the box, (h, w).

    Returns:
        IoU in [0, 1]; a box of one colour is one cluster.
    """
    step = 2 if max(mask.shape) > 48 else 1
    colours = _rgb_to_lab(image[::step, ::step]).reshape(-1, 3)
    truth = mask[::step, ::step].ravel()
    centred = colours - colours.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1]
    best = np.ones_like(truth)
    least_spread = float((centred**2).sum())
    for axis in range(3):
        second = centred @ axes[:, axis] > 0
        for _ in range(20):
            if second.all() or not second.any():
                break
            low, high = centred[~second].mean(axis=0), centred[second].mean(axis=0)
            after = centred @ (high - low) > (high @ high - low @ low) / 2
            if (after == second).all():
                break
            second = after
        spread = sum(
            float(((part - part.mean(axis=0)) ** 2).sum())
            for part in (centred[second], centred[~second])
            if len(part)
        )
        if spread < least_spread:
            best, least_spread = second, spread
    return max(
        int((cluster & truth).sum()) / max(1, int((cluster | truth).sum()))
        for cluster in (best, ~best)
    )


def measure_difficulty(scenes: Sequence[Scene]) -> list[tuple[float, float]]:
    """IoU of the filled box and of the best colour split, for each object of some scenes."""
    measures = []
    for scene in scenes:
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            mask = item.mask[y1:y2, x1:x2]
            split = colour_split_iou(scene.image[y1:y2, x1:x2], mask)
            measures.append((float(mask.mean()), split))
    return measures


# Files


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene, with masks as compressed run lengths."""
    from pycocotools import mask as coco_mask

    entries = []
    for offset, item in enumerate(scene.objects):
        encoded = coco_mask.encode(np.asfortranarray(item.mask.astype(np.uint8)))
        x1, y1, x2, y2 = item.box
        entries.append(
            {
                "id": first_id + offset,
                "image_id": image_id,
                "category_id": item.label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(item.mask.sum()),
                "iscrowd": 0,
                "segmentation": {
                    "size": list(item.mask.shape),
                    "counts": encoded["counts"].decode("ascii"),
                },
            }
        )
    return entries


def write_scenes(
    out: str | Path,
    *,
    images: int,
    seed: int,
    val_images: int,
    size: tuple[int, int] = (256, 320),
) -> Iterator[Difficulty]:
    """Render a training and a validation set into a folder, one scene per step.

    Files: images/*.jpg, depth/*.png (8 bits, larger is nearer), train.json and val.json. The same
    arguments give the same bytes.

    Args:
        out: The folder; made if it is not there.
        images: Number of training scenes, at least 1.
        seed: Seed of the whole set, at least 0.
        val_images: Number of validation scenes, at least 1.
        size: H, W of the scenes.

    Yields:
        After each scene, the difficulty of all objects so far; the last one is the set's.

    Raises:
        DataError: The folder holds other annotations.
    """
    out = Path(out)
    if min(images, val_images) < 1:
        raise ValueError(f"scenes need at least one image, got {images} and {val_images}")
    if min(size) < SMALLEST_SCENE:
        raise ValueError(f"size must be at least {SMALLEST_SCENE} {SMALLEST_SCENE}, got {size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    refuse_foreign_folder(out, _DESCRIPTION, "the scenes")
    for folder in ("images", "depth"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    measures: list[tuple[float, float]] = []
    image_id, annotation_id = 1, 1
    for split, (name, count) in enumerate((("train", images), ("val", val_images))):
        content: dict[str, Any] = {
            "info": {"description": _DESCRIPTION, "seed": seed, "split": name},
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": [{"id": row + 1, "name": item} for row, item in enumerate(CLASSES)],
        }
        for index in range(count):
            scene = render_scene(scene_random(seed, split, index), size)
            stem = f"{name}_{index:05d}"
            Image.fromarray(scene.image).save(
                out / "images" / f"{stem}.jpg", quality=94, subsampling=0
            )
            Image.fromarray(scene.depth).save(out / "depth" / f"{stem}.png")
            content["images"].append(
                {
                    "id": image_id,
                    "file_name": f"images/{stem}.jpg",
                    "height": size[0],
                    "width": size[1],
                    "depth_file_name": f"depth/{stem}.png",
                }
            )
            entries = _annotations(scene, image_id, annotation_id)
            content["annotations"] += entries
            image_id, annotation_id = image_id + 1, annotation_id + len(entries)
            measures += measure_difficulty([scene])
            boxes, splits = (sum(column) for column in zip(*measures, strict=True))
            yield Difficulty(len(measures), boxes / len(measures), splits / len(measures))
        text = json.dumps(content, separators=(",", ":"))
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")

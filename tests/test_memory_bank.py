"""The memory bank: what enters, what leaves, what is chosen and where it is put."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from boxseg.boxes import rasterise
from boxseg.train.copy_paste import Peer, Scene
from boxseg.train.memory_bank import (
    CopyPaste,
    MemoryBank,
    PeerPaste,
    SemanticPaste,
    build_copy_paste,
)
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.transforms import PADDING, Batch

ALWAYS = PeerPaste(skip=0)
LEFT, RIGHT = [8.0, 8.0, 32.0, 40.0], [72.0, 16.0, 104.0, 48.0]
"""Two boxes that are far apart, 24 x 32 = 768 px and 32 x 32 = 1024 px."""


def batch_of(
    boxes: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int]] | None = None,
    *,
    size: tuple[int, int] = (64, 128),
    seed: int = 0,
    depth: bool = True,
) -> Batch:
    """Noisy images of 64 x 128 pixels with boxes, all of class 0 unless labels are given."""
    generator = torch.Generator().manual_seed(seed)
    count = len(boxes)
    images = torch.tensor(PADDING, dtype=torch.uint8)[None, :, None, None].repeat(count, 1, 64, 128)
    content = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    images[:, :, : size[0], : size[1]] = content
    return Batch(
        images=images,
        sizes=torch.tensor([size] * count),
        original_sizes=torch.tensor([size] * count),
        boxes=[torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in boxes],
        labels=[
            torch.tensor([0] * len(rows) if labels is None else labels[index], dtype=torch.int64)
            for index, rows in enumerate(boxes)
        ],
        masks=None,
        depth=torch.rand(count, 16, 32, generator=generator) * 255 if depth else None,
        image_ids=tuple(range(count)),
        file_names=tuple(f"{index}.jpg" for index in range(count)),
    )


def pseudo_of(
    batch: Batch, quality: float | list[float] = 0.75, confidence: float | list[float] = 0.75
) -> PseudoMasks:
    """Masks that fill their boxes."""

    def per_object(value: float | list[float], count: int) -> Tensor:
        return torch.tensor(value if isinstance(value, list) else [value] * count)

    return PseudoMasks(
        masks=[rasterise(rows, 16, 32, 4) for rows in batch.boxes],
        quality=[per_object(quality, len(rows)) for rows in batch.boxes],
        confidence=[per_object(confidence, len(rows)) for rows in batch.boxes],
    )


def filled(
    options: CopyPaste, batch: Batch | None = None, steps: int = 1, **keys: int
) -> MemoryBank:
    """A bank that stored one batch in a number of steps, by default with two good peers."""
    bank = MemoryBank(options, **{"seed": 0, "rank": 0} | keys)
    batch = batch_of([[LEFT, RIGHT]]) if batch is None else batch
    for step in range(steps):
        bank.store(batch, pseudo_of(batch), step=step)
    return bank


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches have the same images and boxes."""
    pairs = zip(first.boxes, second.boxes, strict=True)
    return torch.equal(first.images, second.images) and all(torch.equal(a, b) for a, b in pairs)


# What enters


def test_a_good_isolated_object_is_cut_out_in_whole_cells() -> None:
    batch = batch_of([[[9.5, 10.0, 33.0, 39.0]]], [[2]])
    bank = MemoryBank(PeerPaste(), seed=0, rank=0)
    bank.store(batch, pseudo_of(batch, 0.75, 0.625), step=7)
    (peer,) = bank.peers
    # Columns floor(9.5 / 4) = 2 to ceil(33 / 4) = 9, rows 2 to 10.
    assert peer.origin == (2, 2)
    assert torch.equal(peer.image, batch.images[0, :, 8:40, 8:36])
    assert peer.box == (1.5, 2.0, 25.0, 31.0)
    # Centres inside: columns 10..30 (9 cells minus the one at 34), rows 10..38.
    mask = torch.zeros(8, 7)
    mask[:, :6] = 1
    assert torch.equal(peer.mask, mask)
    assert batch.depth is not None
    assert peer.depth is not None
    assert torch.equal(peer.depth, batch.depth[0, 2:10, 2:9])
    assert (peer.label, peer.quality, peer.confidence, peer.step) == (2, 0.75, 0.625, 7)
    assert peer.counted is None
    assert peer.true_mask is None


def test_a_crop_ends_where_the_image_content_ends() -> None:
    batch = batch_of([[[80.0, 20.0, 110.0, 50.0]]], size=(50, 110))
    (peer,) = filled(PeerPaste(), batch).peers
    assert peer.image.shape == (3, 30, 30)
    assert peer.mask.shape == (8, 8)


def test_a_peer_does_not_change_with_the_image_that_it_was_cut_out_of() -> None:
    batch = batch_of([[LEFT]])
    pseudo = pseudo_of(batch)
    bank = MemoryBank(PeerPaste(), seed=0, rank=0)
    bank.store(batch, pseudo, step=0)
    before = copy.deepcopy(bank.peers[0])
    assert batch.depth is not None
    for tensor in (batch.images, batch.depth, pseudo.masks[0]):
        tensor.zero_()
    after = bank.peers[0]
    assert before.depth is not None
    assert after.depth is not None
    assert torch.equal(after.image, before.image)
    assert torch.equal(after.mask, before.mask)
    assert torch.equal(after.depth, before.depth)


@pytest.mark.parametrize(
    ("other", "stored"),
    [
        # Against 8..32 by 8..40 (768 px): 4 x 32 shared of 768 + 768 - 128, IoU .091
        ([28.0, 8.0, 52.0, 40.0], 2),
        # 5 x 32 shared: 160 / 1376 = .116
        ([27.0, 8.0, 51.0, 40.0], 0),
    ],
)
def test_objects_that_overlap_another_are_not_stored(other: list[float], stored: int) -> None:
    assert len(filled(PeerPaste(), batch_of([[LEFT, other]])).peers) == stored


@pytest.mark.parametrize(
    ("quality", "confidence", "stored"),
    [(0.51, 0.51, 1), (0.5, 0.9, 0), (0.9, 0.5, 0), (0.0, 0.0, 0)],
)
def test_objects_of_low_quality_or_confidence_are_not_stored(
    quality: float, confidence: float, stored: int
) -> None:
    batch = batch_of([[LEFT]])
    bank = MemoryBank(PeerPaste(), seed=0, rank=0)
    bank.store(batch, pseudo_of(batch, quality, confidence), step=0)
    assert len(bank.peers) == stored


def test_objects_of_a_small_mask_are_not_stored() -> None:
    # 4 x 5 cells are 320 px, 4 x 4 are 256; the bound is 300.
    batch = batch_of([[[8.0, 8.0, 24.0, 28.0], [80.0, 8.0, 96.0, 24.0]]])
    bank = filled(PeerPaste(), batch)
    assert [peer.origin for peer in bank.peers] == [(2, 2)]
    assert len(filled(PeerPaste(min_area=255), batch).peers) == 2


def test_a_random_choice_stores_any_object_with_a_mask() -> None:
    batch = batch_of([[LEFT, [27.0, 8.0, 51.0, 40.0], RIGHT]])
    bank = MemoryBank(PeerPaste(choice="random"), seed=0, rank=0)
    bank.store(batch, pseudo_of(batch, [0.1, 0.9, 0.0], [0.1, 0.2, 0.0]), step=0)
    assert [round(peer.quality, 3) for peer in bank.peers] == [0.1, 0.9]


def test_images_without_boxes_store_nothing() -> None:
    batch = batch_of([[], []])
    assert filled(PeerPaste(), batch).peers == ()
    assert filled(PeerPaste(choice="random"), batch).peers == ()
    assert filled(SemanticPaste(), batch).peers == ()


# What leaves


def test_the_oldest_peer_leaves_a_full_bank() -> None:
    batch = batch_of([[LEFT, RIGHT]])
    bank = filled(PeerPaste(length=5), batch, steps=4)
    assert [(peer.step, peer.origin) for peer in bank.peers] == [
        (1, (4, 18)),
        (2, (2, 2)),
        (2, (4, 18)),
        (3, (2, 2)),
        (3, (4, 18)),
    ]
    # Ages in step 5: 4, 3, 3, 2, 2
    assert bank.diagnostics(5) == {"bank_fill": 1.0, "bank_age": 14 / 5}


def test_a_random_peer_leaves_where_the_recipe_says_so() -> None:
    batch = batch_of([[LEFT, RIGHT]])
    bank = filled(PeerPaste(length=5, evict="random"), batch, steps=40)
    steps = [peer.step for peer in bank.peers]
    assert len(steps) == 5
    assert steps == sorted(steps)
    assert steps != [37, 38, 38, 39, 39]


def test_diagnostics_of_an_empty_bank_are_zero() -> None:
    bank = MemoryBank(PeerPaste(), seed=0, rank=0)
    assert bank.diagnostics(9) == {"bank_fill": 0.0, "bank_age": 0.0}


def test_a_semantic_bank_counts_images() -> None:
    batch = batch_of([[LEFT, RIGHT], [], [LEFT]])
    bank = filled(SemanticPaste(length=4), batch)
    assert bank.diagnostics(0)["bank_fill"] == 0.5
    bank.store(batch, pseudo_of(batch), step=1)
    bank.store(batch, pseudo_of(batch), step=2)
    # Of six images with 2, 1, 2, 1, 2, 1 objects the last four stay.
    assert [peer.step for peer in bank.peers] == [1, 1, 1, 2, 2, 2]
    assert bank.diagnostics(2)["bank_fill"] == 1


def test_a_used_peer_leaves_where_the_recipe_says_so() -> None:
    bank = filled(PeerPaste(skip=0, remove_used=True))
    batch = batch_of([[LEFT], [LEFT], [LEFT]], seed=1)
    _, pseudo = bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)
    assert bank.peers == ()
    assert pseudo.pasted is not None
    assert [row.sum().item() for row in pseudo.pasted][2] == 0


# Pasting


def test_a_paste_changes_the_image_and_all_targets_together() -> None:
    bank = filled(PeerPaste(skip=0, min_left_area=0, max_moved=128), batch_of([[LEFT]]))
    (peer,) = bank.peers
    batch = batch_of([[[40.0, 16.0, 80.0, 48.0]]], seed=1)
    before = pseudo_of(batch)
    # The peer fills its crop, 24 x 32 px; a step in which none of it lies outside is looked at.
    made, pseudo = next(
        pasted
        for step in range(20)
        for pasted in [bank.paste(batch, before, step=step, teacher_step=0)]
        if (pasted[0].boxes[0][1][2:] - pasted[0].boxes[0][1][:2]).tolist() == [24, 32]
    )
    assert pseudo.pasted is not None
    assert pseudo.pasted[0].tolist() == [False, True]
    x1, y1, x2, y2 = (int(side) for side in made.boxes[0][1].tolist())
    assert (x1 % 4, y1 % 4) == (0, 0)
    inside = torch.zeros(64, 128, dtype=torch.bool)
    inside[y1:y2, x1:x2] = True
    for y, x in ((y1, x1), (y1, x2 - 1), (y2 - 1, x1), (y2 - 1, x2 - 1)):
        inside[y, x] = False  # a cut-out has no corners
    assert torch.equal(made.images[0][:, ~inside], batch.images[0][:, ~inside])
    spot = made.images[0][:, y1:y2, x1:x2]
    assert torch.equal(spot[:, inside[y1:y2, x1:x2]], peer.image[:, inside[y1:y2, x1:x2]])
    cells = rasterise(made.boxes[0][1:], 16, 32, 4)[0]
    assert torch.equal(pseudo.masks[0][1], cells)
    assert torch.equal(pseudo.masks[0][0], before.masks[0][0] * (1 - cells))
    assert pseudo.quality[0].tolist() == [0.75, 0.75]
    assert made.labels[0].tolist() == [0, 0]
    assert batch.depth is not None
    assert made.depth is not None
    assert peer.depth is not None
    outside = cells == 0
    assert torch.equal(made.depth[0][outside], batch.depth[0][outside])
    median = made.depth[0][~outside].quantile(0.5)
    hidden = batch.depth[0][~outside].quantile(0.95)
    assert median >= min(float(hidden) + 7.99, 255)


def test_the_arguments_are_not_modified() -> None:
    bank = filled(PeerPaste(skip=0, min_pasted_area=0))
    batch = batch_of([[LEFT, RIGHT], [RIGHT]], seed=1)
    pseudo = pseudo_of(batch)
    kept = copy.deepcopy((batch, pseudo, bank.state_dict()))
    made, _ = bank.paste(batch, pseudo, step=0, teacher_step=0)
    assert not same(made, batch)
    for before, after in ((kept[0], batch), (kept[1], pseudo)):
        for name, value in vars(before).items():
            now = getattr(after, name)
            if isinstance(value, Tensor):
                assert torch.equal(value, now), name
            elif isinstance(value, list):
                assert all(torch.equal(a, b) for a, b in zip(value, now, strict=True)), name
            else:
                assert value == now, name
    for old, new in zip(kept[2]["peers"], bank.state_dict()["peers"], strict=True):
        assert torch.equal(old["image"], new["image"])
        assert torch.equal(old["depth"], new["depth"])


def test_an_empty_bank_pastes_nothing() -> None:
    bank = MemoryBank(ALWAYS, seed=0, rank=0)
    batch = batch_of([[LEFT]])
    made, pseudo = bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)
    assert same(made, batch)
    assert pseudo.pasted is not None
    assert pseudo.pasted[0].tolist() == [False]


def test_a_peer_goes_only_where_its_class_is() -> None:
    bank = filled(ALWAYS, batch_of([[LEFT, RIGHT]], [[4, 6]]))
    batch = batch_of([[LEFT], [RIGHT, LEFT], []], [[5], [5, 6], []], seed=1)
    for step in range(10):
        made, pseudo = bank.paste(batch, pseudo_of(batch), step=step, teacher_step=0)
        assert pseudo.pasted is not None
        assert made.labels[0].tolist() == [5]
        assert made.labels[2].tolist() == []
        assert all(label == 6 for label in made.labels[1][pseudo.pasted[1]].tolist())


def test_depth_may_be_missing() -> None:
    bank = filled(ALWAYS, batch_of([[LEFT]], depth=False))
    batch = batch_of([[RIGHT]], depth=False, seed=1)
    made, _ = bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)
    assert made.depth is None
    assert not same(made, batch)


def test_a_peer_without_the_depth_that_a_batch_has_is_refused() -> None:
    bank = filled(ALWAYS, batch_of([[LEFT]], depth=False))
    batch = batch_of([[RIGHT]])
    with pytest.raises(ValueError, match="the batch has depth, a peer in the memory bank has none"):
        bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)


def test_true_masks_and_counted_cells_have_as_many_objects_as_boxes() -> None:
    plain = batch_of([[LEFT, RIGHT], [LEFT]])
    batch = replace(plain, masks=pseudo_of(plain).masks)
    pseudo = replace(pseudo_of(plain), counted=[rows > 0 for rows in pseudo_of(plain).masks])
    bank = MemoryBank(ALWAYS, seed=0, rank=0)
    bank.store(batch, pseudo, step=0)
    pasted = 0
    for step in range(10):
        made, taught = bank.paste(batch, pseudo, step=step, teacher_step=0)
        assert made.masks is not None
        assert taught.counted is not None
        assert taught.pasted is not None
        for row, boxes in enumerate(made.boxes):
            count = len(boxes)
            for rows in (made.labels, made.masks, taught.masks, taught.quality):
                assert len(rows[row]) == count
            for rows in (taught.confidence, taught.counted, taught.pasted):
                assert len(rows[row]) == count
            # Here true masks and pseudo masks are the same, and stay so.
            assert torch.equal(made.masks[row], taught.masks[row])
            pasted += int(taught.pasted[row].sum())
    assert pasted >= 10


def test_masks_of_a_paste_lie_in_their_boxes_and_the_image_content() -> None:
    bank = filled(PeerPaste(skip=0, min_pasted_area=0), batch_of([[LEFT, RIGHT]]))
    batch = batch_of([[[4.0, 4.0, 20.5, 30.0]], [[60.5, 20.0, 97.5, 49.5]]], size=(51, 99), seed=1)
    for step in range(15):
        made, pseudo = bank.paste(batch, pseudo_of(batch), step=step, teacher_step=0)
        assert torch.equal(made.images[:, :, 51:], batch.images[:, :, 51:])
        assert torch.equal(made.images[:, :, :, 99:], batch.images[:, :, :, 99:])
        for boxes, masks in zip(made.boxes, pseudo.masks, strict=True):
            assert (masks <= rasterise(boxes, 16, 32, 4)).all()
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2] <= 99).all()
            assert (boxes[:, 3] <= 51).all()


# Draws


def test_a_step_pastes_the_same_whenever_it_is_made() -> None:
    batch = batch_of([[LEFT, RIGHT]], seed=1)
    made = [
        filled(ALWAYS).paste(batch, pseudo_of(batch), step=step, teacher_step=0)[0]
        for step in (3, 3, 4)
    ]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_seeds_and_processes_paste_differently() -> None:
    batch = batch_of([[LEFT, RIGHT]], seed=1)
    made = [
        filled(ALWAYS, seed=seed, rank=rank).paste(batch, pseudo_of(batch), step=3, teacher_step=0)[
            0
        ]
        for seed, rank in ((0, 0), (1, 0), (0, 1))
    ]
    assert not same(made[0], made[1])
    assert not same(made[0], made[2])


def test_a_bank_goes_on_from_its_file_as_if_it_had_never_stopped() -> None:
    batch = batch_of([[LEFT, RIGHT], [RIGHT]], seed=1)
    bank = filled(PeerPaste(skip=0, length=5), steps=4)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = MemoryBank(PeerPaste(skip=0, length=5), seed=0, rank=0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(4, 8):
        first, taught = bank.paste(batch, pseudo_of(batch), step=step, teacher_step=0)
        second, again = other.paste(batch, pseudo_of(batch), step=step, teacher_step=0)
        assert same(first, second)
        assert first.depth is not None
        assert second.depth is not None
        assert torch.equal(first.depth, second.depth)
        for a, b in zip(taught.masks, again.masks, strict=True):
            assert torch.equal(a, b)
        for one in (bank, other):
            one.store(batch, pseudo_of(batch), step=step)
        assert [peer.number for peer in bank.peers] == [peer.number for peer in other.peers]
        assert bank.diagnostics(step) == other.diagnostics(step)


def test_a_shorter_bank_drops_the_oldest_of_its_file() -> None:
    bank = filled(PeerPaste(), steps=3)
    shorter = MemoryBank(PeerPaste(length=4), seed=0, rank=0)
    shorter.load_state_dict(bank.state_dict())
    assert [peer.step for peer in shorter.peers] == [1, 1, 2, 2]


@pytest.mark.parametrize(("teacher_step", "share"), [(0, 1.0), (50, 0.65), (100, 0.3), (1000, 0.3)])
def test_pasting_becomes_rarer_while_the_teacher_learns(teacher_step: int, share: float) -> None:
    # No paste with probability .7 * min(t / 100, 1). Of 10,000 draws the standard error is .005.
    options = PeerPaste(warmup_steps=100)
    generator = np.random.default_rng(0)
    drawn = options.attempts(generator, 10000, fill=0.0, teacher_step=teacher_step)
    assert abs(float(drawn.mean()) - share) < 0.02


def peers_of(labels: list[int], quality: list[float], pictures: list[int]) -> list[Peer]:
    """Peers of 24 x 32 px."""
    (peer,) = filled(PeerPaste(), batch_of([[LEFT]])).peers
    return [
        replace(peer, label=label, quality=value, picture=picture, number=number)
        for number, (label, value, picture) in enumerate(
            zip(labels, quality, pictures, strict=True)
        )
    ]


def scene_of(boxes: list[list[float]], labels: list[int]) -> Scene:
    """An image of 64 x 128 pixels."""
    return Scene(64, 128, np.array(boxes).reshape(-1, 4), np.array(labels, dtype=np.int64))


def test_the_best_peer_of_a_random_image_is_chosen() -> None:
    # Image 0 has the peers 0 and 1, image 1 the peers 2 and 3; peer 3's class is not there.
    peers = peers_of([1, 1, 1, 2], [0.6, 0.7, 0.55, 0.99], [0, 0, 1, 1])
    generator = np.random.default_rng(0)
    scene = scene_of([LEFT], [1])
    chosen = [PeerPaste().plan(generator, peers, scene)[0].peer.number for _ in range(50)]
    assert set(chosen) == {1, 2}


def test_a_random_choice_takes_any_peer_of_a_class_that_is_there() -> None:
    peers = peers_of([1, 1, 1, 2], [0.6, 0.7, 0.55, 0.99], [0, 0, 1, 1])
    generator = np.random.default_rng(0)
    options = PeerPaste(choice="random")
    scene = scene_of([LEFT], [1])
    assert {options.plan(generator, peers, scene)[0].peer.number for _ in range(50)} == {0, 1, 2}


def test_a_peer_overlaps_a_learner_of_its_class_by_a_tenth_of_its_sides() -> None:
    peers = peers_of([1], [0.9], [0])
    scene = scene_of([LEFT, RIGHT, [60.0, 50.0, 64.0, 54.0]], [1, 1, 2])
    generator = np.random.default_rng(0)
    reached = set()
    for _ in range(200):
        (place,) = PeerPaste().plan(generator, peers, scene)
        left, top = 4.0 * place.column, 4.0 * place.row
        over = []
        for x1, y1, x2, y2 in (LEFT, RIGHT):
            wide = min(left + 24, x2) - max(left, x1)
            high = min(top + 32, y2) - max(top, y1)
            over.append(wide >= 2.4 and high >= 3.2)
        assert any(over)
        reached.add(over.index(True))
    assert reached == {0, 1}


def test_a_random_place_lies_in_the_image() -> None:
    peers = peers_of([1], [0.9], [0])
    generator = np.random.default_rng(0)
    options = PeerPaste(place="random")
    places = [options.plan(generator, peers, scene_of([LEFT], [1]))[0] for _ in range(300)]
    # 128 - 24 = 104 px to the right are 0..26 cells, 64 - 32 = 32 px down are 0..8.
    assert {place.column for place in places} == set(range(27))
    assert {place.row for place in places} == set(range(9))


def test_a_peer_that_is_longer_than_the_image_spans_it() -> None:
    peers = peers_of([1], [0.9], [0])
    small = Scene(16, 12, np.array([[0.0, 0.0, 12.0, 16.0]]), np.array([1]))
    generator = np.random.default_rng(0)
    for _ in range(20):
        (place,) = PeerPaste(place="random").plan(generator, peers, small)
        assert -16 <= 4 * place.row <= 0
        assert -12 <= 4 * place.column <= 0


# SIM


def test_semantic_paste_waits_for_a_full_bank() -> None:
    batch = batch_of([[LEFT]], seed=1)
    options = SemanticPaste(length=2, probability=1)
    made, _ = filled(options, batch_of([[RIGHT]])).paste(
        batch, pseudo_of(batch), step=0, teacher_step=10**6
    )
    assert same(made, batch)
    bank = filled(options, batch_of([[RIGHT]]), steps=2)
    made, pseudo = bank.paste(batch, pseudo_of(batch), step=2, teacher_step=0)
    # The object lies where it lay in its own image.
    assert made.boxes[0].tolist() == [LEFT, RIGHT]
    assert pseudo.pasted is not None
    assert pseudo.pasted[0].tolist() == [False, True]
    made, _ = bank.paste(batch_of([[]]), pseudo_of(batch_of([[]])), step=2, teacher_step=0)
    assert made.boxes[0].tolist() == [RIGHT]


def test_semantic_paste_draws_images_with_its_probability() -> None:
    drawn = SemanticPaste().attempts(np.random.default_rng(0), 10000, fill=1.0, teacher_step=0)
    assert abs(float(drawn.mean()) - 0.5) < 0.02


@pytest.mark.parametrize(("count", "pasted"), [(1, 1), (7, 1), (8, 2), (12, 3), (40, 3)])
def test_semantic_paste_takes_a_quarter_of_an_image(count: int, pasted: int) -> None:
    peers = peers_of([0] * count, [0.9] * count, [5] * count)
    generator = np.random.default_rng(0)
    for _ in range(20):
        places = SemanticPaste().plan(generator, peers, scene_of([], []))
        numbers = [place.peer.number for place in places]
        assert len(numbers) == pasted
        assert len(set(numbers)) == pasted  # none twice


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.75), (3.0, 27 / 28)])
def test_semantic_paste_draws_by_quality(power: float, share: float) -> None:
    # Qualities .3 and .9: .9 / 1.2 = .75, and .729 / .756 = .964. Standard error under .01.
    peers = peers_of([0, 0], [0.3, 0.9], [0, 0])
    generator = np.random.default_rng(0)
    options = SemanticPaste(quality_power=power)
    drawn = [options.plan(generator, peers, scene_of([], []))[0].peer.number for _ in range(2000)]
    assert abs(np.mean(drawn) - share) < 0.03


def test_semantic_paste_takes_all_objects_from_one_image() -> None:
    peers = peers_of([0] * 16, [0.9] * 16, [0] * 8 + [1] * 8)
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        places = SemanticPaste(place="shifted").plan(generator, peers, scene_of([], []))
        pictures = {place.peer.picture for place in places}
        assert len(pictures) == 1
        seen |= pictures
    assert seen == {0, 1}


def test_semantic_paste_shifts_where_the_recipe_says_so() -> None:
    peers = peers_of([0], [0.9], [0])
    generator = np.random.default_rng(0)
    options = SemanticPaste(place="shifted")
    places = [options.plan(generator, peers, scene_of([], []))[0] for _ in range(300)]
    assert {place.column for place in places} == set(range(27))


def test_a_stored_image_out_of_the_content_is_not_pasted() -> None:
    bank = filled(SemanticPaste(length=1, probability=1), batch_of([[RIGHT]]))
    batch = batch_of([[LEFT]], size=(60, 70), seed=1)
    made, _ = bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)
    assert same(made, batch)


def test_semantic_paste_removes_what_is_hidden_and_keeps_what_is_partly_seen() -> None:
    bank = filled(SemanticPaste(length=1, probability=1), batch_of([[LEFT]]))
    # The first object lies behind, all of it; the second reaches 8 px out to the right.
    batch = batch_of([[[12.0, 12.0, 28.0, 36.0], [8.0, 12.0, 40.0, 36.0]]], seed=1)
    made, pseudo = bank.paste(batch, pseudo_of(batch), step=0, teacher_step=0)
    assert made.boxes[0].tolist() == [[32.0, 12.0, 40.0, 36.0], LEFT]
    # 2 x 6 cells of it are left.
    assert pseudo.masks[0].flatten(1).sum(dim=1).tolist() == [12.0, 48.0]


# The recipe's section


def test_a_method_is_built_from_its_section() -> None:
    assert build_copy_paste({"peer": {}}) == PeerPaste()
    assert build_copy_paste({"semantic": {}}) == SemanticPaste()
    built = build_copy_paste({"peer": {"choice": "random", "skip": 1, "warmup_steps": 0}})
    assert built == PeerPaste(choice="random", skip=1, warmup_steps=0)
    assert (PeerPaste().length, SemanticPaste().length) == (80, 100)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"copy_paste must name one method of peer, semantic, got \[\]"),
        ({"peer": {}, "semantic": {}}, r"copy_paste must name one method .*'semantic'\]"),
        ({"paste": {}}, r"copy_paste\.paste is unknown; known methods: peer, semantic"),
        ({"peer": {"p": 1}}, r"copy_paste\.peer\.p is unknown; known options: .*choice"),
        (
            {"peer": {"length": 0}},
            r"copy_paste\.peer\.length must be a number of at least 1, got 0",
        ),
        ({"peer": {"skip": 1.5}}, r"copy_paste\.peer\.skip must be a number in \[0, 1\], got 1\.5"),
        ({"peer": {"min_left_share": 2}}, r"peer\.min_left_share must be a number in \[0, 1\]"),
        ({"peer": {"min_area": -1}}, r"peer\.min_area must be a number of at least 0, got -1"),
        ({"peer": {"choice": "best"}}, r"peer\.choice must be quality or random, got 'best'"),
        ({"peer": {"remove_used": 1}}, r"peer\.remove_used must be true or false, got 1"),
        ({"semantic": {"place": "overlapped"}}, r"semantic\.place must be in_place or shifted"),
    ],
)
def test_a_wrong_section_is_refused_with_its_whole_path(
    section: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_copy_paste(section)


def test_a_box_that_leaves_the_image_by_a_rounding_is_cut_at_its_border() -> None:
    bank = filled(ALWAYS, batch_of([[[-1.5e-5, -1.5e-5, 32.0, 40.0]]]))
    (peer,) = bank._peers
    assert peer.origin == (0, 0)
    assert peer.image.shape == (3, 40, 32)
    batch = batch_of([[LEFT]], seed=1)
    assert len(bank.paste(batch, pseudo_of(batch), step=3, teacher_step=3)[0].boxes[0]) == 2

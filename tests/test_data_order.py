"""The order of the data: every image once an epoch, the same for every start and every process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import recipe_with, run, settings_for, write_data

from boxseg.train.data_order import (
    SampleKey,
    StepSampler,
    Unreadable,
    aspect_groups,
    collate_readable,
    grouped_order,
    image_order,
)
from boxseg.train.engine import Engine, RunInterruptedError
from boxseg.train.trainer_state import load_trainer_state

WIDE_AND_TALL = np.repeat([0, 1], [25, 15])
"""Groups of 25 landscape and 15 portrait images."""


def stream(first: int = 0, last: int = 10, **options: Any) -> list[list[SampleKey]]:
    return list(StepSampler(5, 4, seed=3, first_step=first, last_step=last, **options))


def grouped_stream(first: int = 0, last: int = 20, **options: Any) -> list[list[SampleKey]]:
    sampler = StepSampler(
        40, 6, seed=3, first_step=first, last_step=last, groups=WIDE_AND_TALL, **options
    )
    return list(sampler)


def test_every_epoch_shows_every_image_once() -> None:
    keys = [key for batch in stream() for key in batch]
    # 10 steps of 4 images are 8 epochs of 5
    for epoch in range(8):
        assert sorted(key.index for key in keys if key.epoch == epoch) == [0, 1, 2, 3, 4]
    orders = {tuple(key.index for key in keys if key.epoch == epoch) for epoch in range(8)}
    assert len(orders) > 1


def test_a_stream_started_later_is_the_rest_of_the_stream() -> None:
    assert stream()[6:] == stream(first=6)
    assert grouped_stream()[13:] == grouped_stream(first=13)


def test_two_processes_share_the_batch_of_one() -> None:
    halves = zip(stream(rank=0, processes=2), stream(rank=1, processes=2), strict=True)
    assert [left + right for left, right in halves] == stream()
    thirds = zip(*(grouped_stream(rank=rank, processes=3) for rank in range(3)), strict=True)
    assert [one + two + three for one, two, three in thirds] == grouped_stream()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size must be a multiple of the 3 devices"):
        stream(rank=0, processes=3)


def test_an_unreadable_image_takes_the_place_of_its_batch() -> None:
    assert collate_readable([Unreadable("a.png: damaged")]) == Unreadable("a.png: damaged")


# --- batches of like shape ------------------------------------------------------------------------


def test_images_are_parted_by_height_over_width() -> None:
    sizes = np.array([[480, 640], [640, 480], [100, 100], [100, 300], [300, 100], [200, 400]])
    assert aspect_groups(sizes, 1).tolist() == [0] * 6
    assert aspect_groups(sizes, 2).tolist() == [0, 1, 1, 0, 1, 0]
    # ends at 0.5, 0.63, 0.79, 1, 1.26, 1.59, 2; ratios 0.75, 1.33, 1, 0.33, 3, 0.5
    assert aspect_groups(sizes, 8).tolist() == [2, 5, 4, 0, 7, 1]


def test_one_group_is_the_order_without_groups() -> None:
    alone = np.full(7, 3)  # the other groups are empty
    assert grouped_order(0, 2, alone, 4).tolist() == image_order(0, 2, 7).tolist()


@pytest.mark.parametrize(("images", "batch_size"), [(1, 4), (3, 4), (8, 4), (37, 6), (40, 1)])
def test_groups_lose_no_image_and_show_none_twice(images: int, batch_size: int) -> None:
    groups = np.arange(images) % 3
    for epoch in range(5):
        order = grouped_order(9, epoch, groups, batch_size)
        assert sorted(order.tolist()) == list(range(images))


def test_only_what_is_left_over_shares_a_batch_with_another_group() -> None:
    # 25 wide and 15 tall images in batches of 6, so 20 batches are three epochs; a batch with both
    # kinds is where the wide ones of an epoch end
    batches = grouped_stream()
    kinds = [{int(WIDE_AND_TALL[key.index]) for key in batch} for batch in batches]
    assert all(len(batch) == 6 for batch in batches)
    mixed = [step for step, kind in enumerate(kinds) if len(kind) > 1]
    assert len(mixed) <= 3
    assert len({batches[step][0].epoch for step in mixed}) == len(mixed)
    # steps 6 and 13 lie in two epochs (images 36 to 41 and 78 to 83): wide ones from both
    for step in (6, 13):
        assert len({key.epoch for key in batches[step]}) == 2
        assert kinds[step] == {0}


def test_groups_take_turns_and_other_epochs_pair_other_images() -> None:
    batches = grouped_stream()
    kinds = [WIDE_AND_TALL[batch[0].index] for batch in batches]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert changes > 3  # sorted epochs would change once inside each and once between two
    together = [frozenset(key.index for key in batch) for batch in batches]
    assert len(set(together)) == 20


def data_of_two_shapes(folder: Path) -> Path:
    """Write pictures of which every other one is cut to portrait, with one box each."""
    write_data(folder, images=9)
    content = json.loads((folder / "train.json").read_text())
    for image in content["images"][::2]:
        with Image.open(folder / image["file_name"]) as picture:
            picture.crop((0, 0, 40, 64)).save(folder / image["file_name"])
        image["width"] = 40
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def test_a_grouped_run_resumes_bit_for_bit_and_pads_less(tmp_path: Path) -> None:
    data = data_of_two_shapes(tmp_path / "data")
    recipe = recipe_with("data.aspect_groups=2", "data.size_per=batch")
    whole = run(recipe, settings_for(data, tmp_path / "whole"))
    with pytest.raises(RunInterruptedError):
        run(recipe, settings_for(data, tmp_path / "parts"), stop_after=2)
    rest = run(recipe, settings_for(data, tmp_path / "parts", resume=True))
    assert rest.step == whole.step == 6
    theirs = rest.student.state_dict()
    assert all(
        torch.equal(value, theirs[name]) for name, value in whole.student.state_dict().items()
    )
    state = load_trainer_state(tmp_path / "parts" / "trainer.pt")
    assert state.recipe["data"]["aspect_groups"] == 2

    def pixels(engine: Engine) -> int:
        engine.step = 0
        return sum(batch.images[:, 0].numel() for batch in engine._loader())

    mixed = Engine(recipe_with("data.size_per=batch"), settings_for(data, tmp_path / "mixed"))
    assert pixels(whole) < pixels(mixed)

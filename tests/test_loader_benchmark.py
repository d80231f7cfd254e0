"""The loader benchmark loads what a run loads and computes what it says it computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_data_order import data_of_two_shapes
from test_engine import RECIPE, recipe_with

from boxseg import cli
from boxseg.errors import DataError
from boxseg.train.data_order import SampleKey
from boxseg.train.loader import batches_of, build_loader, build_sampler, open_images
from boxseg.train.loader_benchmark import (
    IN_WORKERS,
    TRANSFER,
    LoaderTimes,
    Padding,
    PartTimer,
    count_padding,
    loader_rate,
)

ONE_SIZE = recipe_with("data.short_sides=[64]", "data.aspect_groups=2")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_of_two_shapes(tmp_path_factory.mktemp("loading") / "data")


def test_pixels_and_padding_are_those_of_the_scaled_images(data: Path) -> None:
    images = open_images(ONE_SIZE, data)
    tall, wide = 0, 1
    assert images.sizes[[tall, wide]].tolist() == [[64, 40], [64, 96]]
    both = [[SampleKey(0, tall, 0), SampleKey(0, wide, 0)]]
    # short side 64, long side at most 96: 96 x 60 and 64 x 96, together padded to 96 x 96
    assert count_padding(images, ONE_SIZE, both) == Padding(
        content=96 * 60 + 64 * 96, padded=2 * 96 * 96, batches=1
    )
    # apart: 96 x 64 and 64 x 96
    found = count_padding(images, ONE_SIZE, [[SampleKey(0, tall, 0)], [SampleKey(0, wide, 1)]])
    assert found == Padding(content=96 * 60 + 64 * 96, padded=96 * 64 + 64 * 96, batches=2)
    assert found.share == pytest.approx(1 - (5760 + 6144) / 12288)
    assert found.pixels_per_batch == 6144


def test_the_timed_parts_make_the_batches_of_the_loader(data: Path) -> None:
    images = open_images(ONE_SIZE, data)
    sampler = build_sampler(images, ONE_SIZE, first_step=2, last_step=4)
    timer = PartTimer(images, ONE_SIZE, CPU)
    with batches_of(build_loader(images, sampler, workers=0, pin_memory=False)) as batches:
        for keys, expected in zip(sampler, batches, strict=True):
            batch = timer(keys)
            assert batch.image_ids == expected.image_ids
            assert torch.equal(batch.images, expected.images)
            assert batch.images.is_shared()
    found = timer.seconds_per_image()
    assert list(found) == [*IN_WORKERS, TRANSFER]
    assert all(found[part] > 0 for part in IN_WORKERS)
    assert timer.images == 4


def test_processes_are_computed_from_the_time_that_an_image_takes_in_one() -> None:
    parts = {"decode": 0.004, "geometry": 0.003, "collate": 0.002, "hand over": 0.001}
    times = LoaderTimes(8, Padding(1, 1, 1), parts | {TRANSFER: 5.0}, 1.0)
    assert times.worker_rate == pytest.approx(100)  # 10 ms; the transfer is not theirs
    assert [times.workers_for(rate) for rate in (25, 99, 250)] == [1, 1, 3]


def test_an_unreadable_image_is_an_error(tmp_path: Path) -> None:
    folder = data_of_two_shapes(tmp_path / "data")
    images = open_images(ONE_SIZE, folder)
    for file in folder.glob("train*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="not an image"):
        loader_rate(images, ONE_SIZE, workers=0, batches=2, first_step=0)


def test_the_command_tells_and_writes_what_it_measured(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(RECIPE))
    file = tmp_path / "loading.json"
    words = ["bench-loader", "--config", str(tmp_path / "tiny.yaml"), "--data", str(data)]
    words += ["--workers", "1", "--batches", "2", "--step-rate", "1000000", "--json", str(file)]
    assert cli.run([*words, "--groups", "1", "--groups", "2"]) == 0
    found = json.loads(file.read_text())
    assert [entry["aspect_groups"] for entry in found["measured"]] == [1, 2]
    for entry in found["measured"]:
        milliseconds = sum(entry["part_ms_per_image"][part] for part in IN_WORKERS)
        assert entry["worker_images_per_second"] == pytest.approx(1000 / milliseconds)
        assert entry["loader_images_per_second"] > 0
        computed = found["computed_workers"]["1e+06 images/s"][str(entry["aspect_groups"])]
        assert computed >= 1e6 / entry["worker_images_per_second"]
    assert found["measured"][1]["padding_share"] <= found["measured"][0]["padding_share"]
    assert "of them padding" in capsys.readouterr().out

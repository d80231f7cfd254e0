"""FCOS assignment against the reference (vectors.npz) and by hand."""

from pathlib import Path

import numpy as np
import torch

from boxseg.student import grid_locations
from boxseg.train.assigner import assign_fcos, best_per_object
from boxseg.train.losses import centerness

VECTORS = np.load(Path(__file__).with_name("vectors.npz"))


def reference_grid() -> tuple[torch.Tensor, torch.Tensor]:
    height, width = VECTORS["fcos_image_size"].tolist()
    sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    return grid_locations(sizes)


def test_positives_match_the_reference() -> None:
    locations, levels = reference_grid()
    boxes = torch.from_numpy(VECTORS["fcos_boxes"])
    classes = torch.from_numpy(VECTORS["fcos_classes"])
    found = assign_fcos(locations, levels, [boxes], [classes])
    labels = torch.full((len(locations),), 80)
    labels[found.location_index] = found.labels
    assert labels.tolist() == VECTORS["fcos_labels"].tolist()
    at = found.location_index.numpy()
    assert found.object_index.tolist() == VECTORS["fcos_gt_index"][at].tolist()
    expected = torch.from_numpy(VECTORS["fcos_ltrb_in_strides"][at])
    torch.testing.assert_close(found.distances, expected)
    torch.testing.assert_close(
        centerness(found.distances), torch.from_numpy(VECTORS["fcos_positive_centerness"])
    )


def test_an_image_without_boxes_has_no_positive_beside_one_that_has() -> None:
    locations, levels = reference_grid()
    boxes = torch.from_numpy(VECTORS["fcos_boxes"])
    classes = torch.from_numpy(VECTORS["fcos_classes"])
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    found = assign_fcos(locations, levels, [none[0], boxes], [none[1], classes])
    assert set(found.image_index.tolist()) == {1}


def test_the_smaller_of_two_boxes_wins_a_shared_location() -> None:
    locations, levels = grid_locations([(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)])
    boxes = torch.tensor([[0.0, 0, 32, 32], [8, 8, 24, 24]])
    found = assign_fcos(locations, levels, [boxes], [torch.tensor([3, 5])])
    # stride 8: the four centres at 12 and 20 lie in both central squares (16 +- 12 and 16 +- 8)
    inner = {(12.0, 12.0), (20.0, 12.0), (12.0, 20.0), (20.0, 20.0)}
    by_place = {
        tuple(locations[where].tolist()): label
        for where, label in zip(found.location_index, found.labels.tolist(), strict=True)
        if levels[where] == 0
    }
    assert {place: by_place[place] for place in inner} == dict.fromkeys(inner, 5)


def test_each_object_keeps_its_best_positives() -> None:
    # 2 objects in image 0 share 4 places (2 each), 1 object in image 1 gets all 4
    image = torch.tensor([0, 0, 0, 0, 1, 1])
    objects = torch.tensor([0, 0, 0, 1, 0, 0])
    scores = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.3, 0.4])
    kept = best_per_object(image, objects, scores, images=2, per_image=4)
    assert kept.tolist() == [1, 2, 3, 4, 5]


def test_every_object_keeps_one_positive_when_there_are_too_many_objects() -> None:
    image = torch.zeros(4, dtype=torch.long)
    kept = best_per_object(image, torch.tensor([0, 1, 2, 2]), torch.ones(4), images=1, per_image=2)
    assert kept.tolist() == [0, 1, 2]


def test_nothing_is_kept_of_nothing() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert best_per_object(empty, empty, torch.zeros(0), images=2, per_image=64).tolist() == []

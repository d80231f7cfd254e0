"""Assignment: FCOS against the reference (vectors.npz), detections by hand."""

from pathlib import Path

import numpy as np
import torch

from boxseg.student import grid_locations
from boxseg.train.assigner import (
    assign_by_score,
    assign_fcos,
    best_per_object,
    consistent_depth,
    depth_match_scores,
    match_one_to_one,
)
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


def test_the_best_detection_keeps_the_object_that_it_took_first() -> None:
    # Detection 0 scores best and takes object 1; 1 wants it too, and has nothing else above one
    # half; 2 takes object 0, although 0.6 is less than what 0 has with it.
    overlap = torch.tensor([[0.7, 0.9], [0.4, 0.8], [0.6, 0.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert assign_by_score(overlap, scores, 0.5).tolist() == [2, 0]


def test_a_detection_whose_first_choice_is_taken_takes_the_next_that_overlaps_enough() -> None:
    overlap = torch.tensor([[0.9, 0.5], [0.8, 0.5]])
    assert assign_by_score(overlap, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]
    assert assign_by_score(overlap, torch.tensor([0.1, 0.2]), 0.6).tolist() == [1, -1]


def test_the_one_to_one_matching_has_the_largest_sum() -> None:
    # .9 + .1 is less than .8 + .7, though .9 is the largest
    assert match_one_to_one(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).tolist() == [1, 0]
    assert match_one_to_one(torch.tensor([[0.1, 0.3, 0.2]])).tolist() == [1]


def test_too_few_detections_are_used_as_often_as_needed() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.6]])
    # two of three may have detection 0 and two detection 1: .9 + .8 + .6 is best
    assert match_one_to_one(scores).tolist() == [0, 0, 1]


def test_matching_with_nothing_gives_nothing() -> None:
    for objects, detections in ((0, 0), (0, 3), (2, 0)):
        nothing = [-1] * objects
        assert match_one_to_one(torch.zeros(objects, detections)).tolist() == nothing
        found = assign_by_score(torch.zeros(detections, objects), torch.zeros(detections), 0.5)
        assert found.tolist() == nothing


def test_depth_is_clear_on_a_surface_and_at_an_edge() -> None:
    # Steps of 0, 1, 2, 4 and 9 levels: similarity 1, .61, .37, .14 and .01; clear above .5 and
    # below .1. The last two cells have no neighbour two to the right, nor has the one before
    # padding.
    depth = torch.tensor([[[0.0, 0, 0, 1, 2, 5, 11]]])
    valid = torch.tensor([[[True] * 7]])
    clear, known = consistent_depth(depth, valid)
    assert clear.tolist() == [[[1.0, 1, 0, 0, 1, 0, 0]]]
    assert known.tolist() == [[[1.0, 1, 1, 1, 1, 0, 0]]]
    valid[..., 6] = False
    clear, known = consistent_depth(depth, valid)
    assert clear.tolist() == [[[1.0, 1, 0, 0, 0, 0, 0]]]
    assert known.tolist() == [[[1.0, 1, 1, 1, 0, 0, 0]]]


def test_depth_match_is_the_share_of_a_masks_mass_in_the_object() -> None:
    masks = torch.tensor([[[0.5, 1.0, 0.5, 0.0]], [[0.0, 0.0, 0.5, 0.0]]])
    clear = torch.tensor([[[1.0, 0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    known = torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 1.0]]])
    # object 0: (.5 + .5) / 2, and .5 / max(.5, 1); object 1: nothing
    assert depth_match_scores(masks, clear, known).tolist() == [[0.5, 0.5], [0.0, 0.0]]

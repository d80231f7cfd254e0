"""Colour and depth similarity: numbers by hand and those of the reference (vectors.npz)."""

import math
from pathlib import Path

import numpy as np
import torch

from boxseg.train.affinity import (
    NEIGHBOURS,
    colour_similarity,
    depth_similarity,
    directed_edges,
    mean_colour,
    rgb_to_lab,
    valid_cells,
)

VECTORS = np.load(Path(__file__).with_name("vectors.npz"))


def reference(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


def test_white_black_and_red_have_their_known_lab_values() -> None:
    # CIE: white (100, 0, 0), black (0, 0, 0), sRGB red (53.24, 80.09, 67.20)
    rgb = torch.tensor([[255.0, 255, 255], [0, 0, 0], [255, 0, 0]]).T.reshape(3, 1, 3)
    lab = rgb_to_lab(rgb).reshape(3, 3).T
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab, expected, atol=0.02, rtol=0)


def test_lab_matches_the_reference() -> None:
    torch.testing.assert_close(
        rgb_to_lab(reference("colour_rgb_u8")), reference("colour_lab"), atol=2e-4, rtol=1e-5
    )


def test_similarity_matches_the_reference() -> None:
    lab = rgb_to_lab(reference("colour_rgb_u8"))[None]
    found = colour_similarity(lab, reference("colour_valid")[None] > 0)
    torch.testing.assert_close(found[0], reference("colour_similarity"), atol=1e-4, rtol=1e-4)


def test_similarity_of_two_greys_is_known_by_hand() -> None:
    # L differs by 2 between the columns: exp(-0.5 * 2) = 0.3679; nothing lies across the border
    lab = torch.zeros(1, 3, 1, 3)
    lab[0, 0, 0, 2] = 2
    found = colour_similarity(lab, torch.ones(1, 1, 3, dtype=torch.bool))
    right = NEIGHBOURS.index((0, 2))
    assert math.isclose(found[0, right, 0, 0].item(), math.exp(-1), rel_tol=1e-6)
    assert found.sum().item() == 2 * found[0, right, 0, 0].item()


def test_depth_similarity_is_known_by_hand_and_may_point_one_way() -> None:
    # rows of depth 10, 10, 12: |dD| of columns 0 and 2 is 2, exp(-1); column 2 is invalid, so
    # only the way from it to column 0 counts; column 1 has no neighbour two columns away
    depth = torch.tensor([[[10.0, 10.0, 12.0]]])
    valid = torch.tensor([[[True, True, False]]])
    found = depth_similarity(depth, valid)
    left = NEIGHBOURS.index((0, -2))
    assert found.shape == (1, 8, 1, 3)
    assert math.isclose(found[0, left, 0, 2].item(), math.exp(-1), rel_tol=1e-6)
    assert found.count_nonzero().item() == 1


def test_a_depth_step_of_two_ln_two_grey_levels_has_similarity_one_half() -> None:
    depth = torch.zeros(1, 3, 1)
    depth[0, 2] = 2 * math.log(2)
    found = depth_similarity(depth, torch.ones(1, 3, 1, dtype=torch.bool))
    below = NEIGHBOURS.index((2, 0))
    assert math.isclose(found[0, below, 0, 0].item(), 0.5, rel_tol=1e-6)
    assert not depth_similarity(depth[:0], torch.ones(0, 3, 1, dtype=torch.bool)).numel()


def test_both_ends_of_an_edge_are_told_apart() -> None:
    similarity = torch.zeros(1, 8, 1, 3)
    similarity[0, NEIGHBOURS.index((0, -2)), 0, 2] = 1  # only from the right end to the left
    edges = directed_edges(similarity, 0.5)
    assert edges.sum().item() == 1
    assert edges[1, 0, 0, 0, 0]


def test_colour_of_a_cell_is_the_mean_of_its_bytes_rounded_down() -> None:
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[0, 0, 0, 0] = 255  # 255 / 16 = 15.94
    assert mean_colour(image)[0, :, 0, 0].tolist() == [15, 0, 0]


def test_padding_and_the_removed_strip_are_not_valid() -> None:
    # content 9 x 6 of 16 x 12: centres at 2, 6, 10, 14 and 2, 6, 10; 4 rows removed leave y < 5
    found = valid_cells(torch.tensor([[9, 6]]), 4, 3, torch.tensor([4.0]))
    assert found[0].int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]

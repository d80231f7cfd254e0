"""Box arithmetic by hand."""

import torch

from boxseg.boxes import area, distances_to_boxes, rasterise


def test_distances_lie_around_the_location() -> None:
    box = distances_to_boxes(torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 2, 3, 4]]))
    assert box.tolist() == [[9.0, 18.0, 13.0, 24.0]]


def test_an_inverted_box_has_no_area() -> None:
    assert area(torch.tensor([[0.0, 0, 3, 4], [5.0, 0, 3, 4]])).tolist() == [12.0, 0.0]


def test_a_cell_belongs_to_the_box_that_holds_its_centre() -> None:
    # centres at 2, 6, 10, 14: the box 2..10 holds 2 and 6 in x, 5..15 holds 6, 10 and 14 in y
    found = rasterise(torch.tensor([[2.0, 5, 10, 15]]), 4, 4, 4)
    assert found[0].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_box_without_a_centre_takes_the_cell_nearest_to_its_own() -> None:
    # 7..9 lies between the centres 6 and 10; its middle 8 falls into cell 2
    found = rasterise(torch.tensor([[7.0, 0.5, 9, 1.5]]), 1, 4, 4)
    assert found[0].tolist() == [[0, 0, 1, 0]]


def test_a_box_outside_the_grid_takes_the_border_cell() -> None:
    found = rasterise(torch.tensor([[100.0, 100, 101, 101]]), 2, 2, 4)
    assert found[0].tolist() == [[0, 0], [0, 1]]


def test_no_boxes_give_no_masks() -> None:
    assert rasterise(torch.zeros(0, 4), 3, 5, 4).shape == (0, 3, 5)

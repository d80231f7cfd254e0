"""The levels of instruction sets: what there is, and what is refused."""

import numpy as np
import pytest

from boxseg.runtime import _native

MODEL = (3, (8,), (64,), 4, 8, (6, 1), 1, 0, 0, 0.2, 0.6, 10, 5)


def test_levels_start_with_the_portable_one() -> None:
    assert _native.simd_levels() in (
        ("portable",),
        ("portable", "avx2"),
        ("portable", "avx2", "avx512"),
    )


def test_a_model_takes_every_level_of_the_machine() -> None:
    for level in range(len(_native.simd_levels()) + 1):
        assert _native.parameter_count(_native.make_model(*MODEL, level)) == 6 * 6 + 6 + 6 + 1


@pytest.mark.parametrize("level", [-1, 4, 2**31 - 1])
def test_a_level_that_does_not_exist_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
        _native.make_model(*MODEL, level)
    boxes, scores = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    scratch = np.empty(_native.nms_scratch_size(2, 1), np.uint8)
    with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
        _native.nms(boxes, scores, None, 1, 0.5, 0.0, 2, scratch, np.zeros(2, np.uint32), level)

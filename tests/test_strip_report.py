"""The parts of trainer.pt that stay behind, by name and size."""

from __future__ import annotations

from typing import Any

import torch

from boxseg.export.strip_report import left_behind


def payload(**parts: Any) -> dict[str, Any]:
    """Return a trainer.pt of a run that keeps everything which a run may keep."""
    return {
        "format": "boxseg-trainer",
        "step": 4,
        "model": {"state_dict": {"weight": torch.zeros(9)}},
        "optimizer": {"state": [torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)]},
        "criterion": {"depth_head.weight": torch.zeros(7, dtype=torch.float16)},
        "supervision": {"teacher": {"updates": 5, "network": {"weight": torch.ones(9)}}},
        "own_supervision": [
            {"bank": {"peers": [{"mask": torch.zeros(3, dtype=torch.uint8)}]}},
            {"pseudo_masks": {"vectors": torch.zeros(2, 2), "seen": torch.zeros(2)}},
        ],
        "random": [{"torch": torch.zeros(8, dtype=torch.uint8)}],
        **parts,
    }


def test_with_the_average_the_raw_student_stays_behind() -> None:
    # bytes: 9 x 4; 6 x 4 + 8; 7 x 2; 3 x 1; 6 x 4; 8 x 1
    assert [
        (p.part, p.tensors, p.parameters, p.size_bytes) for p in left_behind(payload(), "ema")
    ] == [
        ("raw student", 1, 9, 36),
        ("optimizer", 2, 7, 32),
        ("depth head", 1, 7, 14),
        ("bank", 1, 3, 3),
        ("prototypes", 2, 6, 24),
        ("random state", 1, 8, 8),
    ]


def test_with_the_student_the_average_stays_behind() -> None:
    parts = left_behind(payload(), "student")
    assert [part.part for part in parts] == [
        "optimizer",
        "depth head",
        "average",
        "bank",
        "prototypes",
        "random state",
    ]
    assert parts[2].line() == "average: 1 tensor, 9 numbers, 0.0 MB"


def test_a_run_without_a_teacher_leaves_no_network_behind() -> None:
    bare = payload(criterion={}, supervision={}, own_supervision=[{}], random=[])
    assert [part.part for part in left_behind(bare)] == ["optimizer"]
    assert left_behind({}) == []

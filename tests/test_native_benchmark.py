"""The race, its inputs and its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from boxseg.runtime import benchmark_inputs, benchmark_peers, native_benchmark
from boxseg.runtime.benchmark_peers import Contender, Peers
from boxseg.runtime.native_benchmark import (
    Case,
    Report,
    Row,
    Times,
    quiet_ratios,
    race,
    row_line,
    run_case,
    verdict,
)

KEYS = {"part", "case", "ours_us", "peer", "peer_us", "ratio", "floor", "goal", "exact"}


def _row(**changes: object) -> Row:
    values = {
        "part": "p", "case": "c", "ours_us": 2.0, "peer": "x", "peer_us": 20.0, "ratio": 10.0,
        "floor": 4.0, "goal": 8.0, "exact": True,
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ inputs


def test_boxes_are_seeded_finite_and_without_ties() -> None:
    for make in (benchmark_inputs.realistic_boxes, benchmark_inputs.adversarial_boxes):
        first, again, other = make(3000), make(3000), make(3000, seed=1)
        assert np.array_equal(first.boxes, again.boxes)
        assert not np.array_equal(first.boxes, other.boxes)
        assert (first.boxes[:, 2:] > first.boxes[:, :2]).all()
        assert len(np.unique(first.scores)) == 3000
        assert first.classes.max() < 80


def test_about_half_of_realistic_and_most_adversarial_boxes_are_kept() -> None:
    pytest.importorskip("torchvision")
    for make, low, high in (
        (benchmark_inputs.realistic_boxes, 0.45, 0.65),
        (benchmark_inputs.adversarial_boxes, 0.9, 1.0),
    ):
        kept = benchmark_peers.kept_per_class(Peers(), make(1000))
        assert kept is not None
        assert low < len(kept) / 1000 < high


def test_only_the_hot_logits_pass_the_threshold() -> None:
    logits = benchmark_inputs.class_logits(hot=37)
    assert logits.shape == (8400, 80)
    assert (1 / (1 + np.exp(-logits)) > 0.05).sum() == 37


# -------------------------------------------------------------------------------------- race


def test_contenders_take_turns_and_the_hopeless_leave() -> None:
    calls: list[str] = []

    def work(name: str, loops: int) -> Contender:
        def call() -> None:
            calls.append(name)
            sum(range(loops))

        return Contender(name, call)

    times = race(
        [work("boxseg slow", 60000), work("near", 20000), work("far", 2000000)], seconds=0.02
    )
    assert times["near"].best < times["boxseg slow"].best < times["far"].best
    assert times["near"].best <= times["near"].median
    assert calls.count("far") <= 4  # called once, timed up to three times
    assert calls.count("near") >= 4 + 2 * 5
    assert calls.count("near") == calls.count("boxseg slow")


def test_rows_name_the_fastest_peer_and_the_missing_ones() -> None:
    def sleep(loops: int) -> Contender:
        return Contender(f"loop {loops}", lambda: sum(range(loops)))

    case = Case(
        "part", "case", {"avx2": lambda: sum(range(1000))}, [sleep(9000), sleep(5000)], ["numba"],
        lambda level: level == "avx2", 2, 3, (1e6, 5e5),
    )  # fmt: skip
    rows, times = run_case(case, seconds=0.01)
    limit, ratio, missing = rows
    assert set(times) == {"boxseg avx2", "loop 9000", "loop 5000"}
    assert (limit.ratio, limit.floor, limit.goal) == (None, 1e6, 5e5)
    assert ratio.peer == "loop 5000"
    assert ratio.ratio == pytest.approx(times["loop 5000"].median / times["boxseg avx2"].median)
    assert ratio.exact is True
    assert missing.peer == "numba: not installed"
    assert missing.ours_us is None


def test_a_faster_peer_than_the_judged_one_gets_a_row_without_limits() -> None:
    def work(name: str, loops: int) -> Contender:
        return Contender(name, lambda: sum(range(loops)))

    case = Case(
        "part", "case", {"avx2": lambda: sum(range(1000))},
        [work("judged a", 9000), work("judged b", 30000), work("quick", 4000)], [],
        lambda level: None, 2, 3, against="judged",
    )  # fmt: skip
    judged, fastest = run_case(case, seconds=0.01)[0]
    assert (judged.peer, judged.floor) == ("judged a", 2)
    assert (fastest.peer, fastest.floor, verdict(fastest)) == ("quick", None, "")


def test_best_times_are_compared_where_the_machine_is_busy() -> None:
    times = {"boxseg avx2": Times(9, 2), "slow": Times(50, 40), "quick": Times(60, 10)}
    report = Report(raced={"part, case": times, "alone": {"boxseg avx2": Times(1, 1)}})
    assert quiet_ratios(report) == ["part, case: avx2 5.0x (quick)"]


def test_verdicts_follow_ratio_or_limit() -> None:
    # 10 >= 8; 10 >= 4 but < 11; 10 < 11
    assert verdict(_row()) == "goal"
    assert verdict(_row(goal=11.0)) == "floor"
    assert verdict(_row(floor=11.0, goal=12.0)) == "below"
    # without a ratio the time is limited from above: 2 <= 3 but > 1
    assert verdict(_row(ratio=None, floor=3.0, goal=1.0)) == "floor"
    assert verdict(_row(ours_us=None)) == ""


def test_a_peer_that_is_not_installed_is_named() -> None:
    peers = Peers()
    assert peers("numpy") is np
    assert peers("no_such_peer") is None
    assert peers.all("numpy", "no_such_peer") is None
    assert peers.missing == ["no_such_peer"]
    assert "not installed" in row_line(
        _row(ours_us=None, peer="numba: not installed", peer_us=None, ratio=None)
    )


# ----------------------------------------------------------------------------------- command


def test_one_part_gives_exact_rows_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from boxseg.runtime.commands import bench_native

    rows_file, picture = tmp_path / "rows.json", tmp_path / "deep" / "ratios.png"
    done = CliRunner().invoke(
        bench_native,
        ["--part", "scan", "--seconds", "0.01", "--json", str(rows_file), "--plot", str(picture)],
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(rows_file.read_text())
    assert rows
    assert all(set(row) == KEYS for row in rows)
    assert all(row["exact"] for row in rows if row["ours_us"] is not None)
    assert {row["part"] for row in rows} == {"candidate scan"}
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_every_part_is_exact() -> None:
    report = native_benchmark.run(seconds=0.01)
    wrong = [row for row in report.rows if row.exact is False]
    assert not wrong
    assert {row.part for row in report.rows} >= {
        "NMS, max_det 300", "NMS, all kept", "candidate scan", "mask head", "COCO RLE in boxes",
        "byte masks, full frame", "whole post-processing", "library size, stripped (KB)",
        "allocations per frame (count)",
    }  # fmt: skip

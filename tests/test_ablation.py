"""The ablation: its commands, its paired differences, its table; one real run is slow."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_train_command import RECIPE, write_data

from boxseg.train import ablation
from boxseg.train.ablation import (
    ROWS,
    AblationError,
    Plan,
    Row,
    Run,
    Trainings,
    ablate,
    base_run,
    execute,
    last_scores,
    paired,
    row_run,
    run_plan,
    table,
)
from boxseg.train.run_lock import LOCK_FILE, FolderInUseError


def plan(tmp_path: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "config": "boxinst_mobilenetv2",
        "data": (Path("d/one"), Path("d/two")),
        "seeds": (0, 1),
        "rows": tuple(row for row in ROWS if row.name in ("boxinst", "mqs")),
        "out": tmp_path / "out",
        "base_iters": 80,
        "iters": 90,
    }
    return Plan(**{**values, **changes})


def entry(data: str, recipe: str, seed: int, mask: float, sharp: float = 0.2) -> dict[str, Any]:
    return {
        "data": data,
        "recipe": recipe,
        "seed": seed,
        "iterations": 90,
        "box_ap": 0.5,
        "mask_ap": mask,
        "mask_ap50": 0.6,
        "mask_ap75": sharp,
    }


def settings_of(run: Run) -> list[str]:
    words = run.command
    return [word for before, word in itertools.pairwise(words) if before == "-o"]


def test_rows_have_unique_names_and_known_predecessors() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {row.before for row in ROWS} <= set(names)


def test_every_row_continues_the_base_of_its_data_and_seed(tmp_path: Path) -> None:
    chosen = plan(tmp_path)
    base = base_run(chosen, Path("d/one"), 1)
    assert base.folder == tmp_path / "out" / "one" / "seed1" / "base"
    assert "--weights" not in base.command
    run = row_run(chosen, Path("d/one"), 1, chosen.rows[1])
    words = run.command
    assert words[words.index("--weights") + 1] == str(base.folder / "last.pt")
    assert words[words.index("--seed") + 1] == "1"
    assert "schedule.max_iters=90" in settings_of(run)
    assert "terms.pseudo_mask={warmup_steps: 10}" in settings_of(run)


def test_settings_of_the_user_come_before_those_of_the_row(tmp_path: Path) -> None:
    row = Row("x", "x", ("data.batch_size=2",))
    run = row_run(plan(tmp_path, overrides=("data.batch_size=8",)), Path("d/one"), 0, row)
    assert settings_of(run)[-2:] == ["data.batch_size=8", "data.batch_size=2"]


def test_paired_differences_by_hand() -> None:
    entries = [
        entry("one", "boxinst", 0, 0.30),
        entry("one", "boxinst", 1, 0.40),
        entry("two", "boxinst", 0, 0.10),
        entry("one", "mqs", 0, 0.31),
        entry("one", "mqs", 1, 0.43),
        entry("two", "mqs", 1, 0.90),  # its partner is missing
    ]
    found = paired(entries, "mqs", "boxinst", "mask_ap")
    assert found is not None
    # differences 1 and 3: mean 2, standard deviation sqrt(2), error sqrt(2) / sqrt(2)
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1.0)
    assert found.pairs == 2
    assert str(found) == "+2.0 ± 1.0"


def test_one_pair_has_no_error_and_no_pair_no_difference() -> None:
    entries = [entry("one", "boxinst", 0, 0.30), entry("one", "mqs", 0, 0.29)]
    found = paired(entries, "mqs", "boxinst", "mask_ap")
    assert found is not None
    assert str(found) == "-1.0"
    assert paired(entries, "mqs", "bqr", "mask_ap") is None


def test_the_table_has_a_line_for_each_row_that_was_run() -> None:
    entries = [entry("one", "boxinst", 0, 0.30), entry("one", "mqs", 0, 0.35, 0.5)]
    lines = table(entries, ROWS)
    assert len(lines) == 4
    assert lines[2].startswith("| BoxInst | 30.0 (20.0), 50.0 |")
    assert "| 35.0 (50.0), 50.0 | +5.0 | +30.0 |" in lines[3]


def test_scores_are_those_of_the_last_step_only(tmp_path: Path) -> None:
    assert last_scores(tmp_path, 90) is None
    (tmp_path / "metrics.csv").write_text(
        "step,phase,loss,box_AP,mask_AP\n40,validation,,0.1,0.2\n90,train,1.5,,\n"
        "90,validation,,0.5,0.25\n"
    )
    assert last_scores(tmp_path, 90) == {"box_AP": 0.5, "mask_AP": 0.25}
    assert last_scores(tmp_path, 80) is None


def test_a_failed_run_is_named_with_its_last_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "row", ("train", "--config", "boxinst_mobilenetv2", "--data", "nowhere"))
    with pytest.raises(AblationError, match=r"row ended with exit code 3: error: .*nowhere.*row.l"):
        execute(run, 1, print, Trainings())


def test_a_run_that_ended_before_its_first_save_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "row"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step\n")
    run = Run(folder, ("train", "--config", "none", "--data", "nowhere", "--out", str(folder)))
    with pytest.raises(AblationError, match="none"):
        execute(run, 1, print, Trainings())
    assert not folder.exists()


def test_a_run_that_is_not_saved_yet_is_not_removed_under_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "row"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step\n")
    take = "import sys; from pathlib import Path; from boxseg.train.run_lock import RunLock; "
    take += "RunLock(Path(sys.argv[1])).take(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", take, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(FolderInUseError, match=f"process {process.pid} trains there"):
            execute(Run(folder, ("train",)), 1, print, Trainings())
        process.communicate(b"\n")
    assert (folder / "metrics.csv").is_file()


def test_a_row_that_is_done_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def pretend(run: Run, *_: object) -> float:
        trained.append("/".join(run.folder.parts[-3:]))
        run.folder.mkdir(parents=True)
        steps = 80 if run.folder.name == "base" else 90
        (run.folder / "metrics.csv").write_text(
            f"step,phase,box_AP,mask_AP,mask_AP50,mask_AP75\n{steps},validation,0.5,0.4,0.6,0.3\n"
        )
        return 1.0

    monkeypatch.setattr(ablation, "execute", pretend)
    chosen = plan(tmp_path, data=(Path("d/one"),), seeds=(0,))
    first = run_plan(chosen, print)
    assert trained == ["one/seed0/base", "one/seed0/boxinst", "one/seed0/mqs"]
    assert [row["recipe"] for row in first] == ["boxinst", "mqs"]
    assert first[0] == json.loads((tmp_path / "out" / "ablation.json").read_text())[0]
    trained.clear()
    more = run_plan(plan(tmp_path, data=(Path("d/one"),), seeds=(0, 1)), print)
    assert trained == ["one/seed1/base", "one/seed1/boxinst", "one/seed1/mqs"]
    assert len(more) == 4
    # fewer rows and seeds: what was measured before stays
    kept = run_plan(replace(chosen, rows=chosen.rows[:1]), print)
    assert len(kept) == 4
    assert len(json.loads((tmp_path / "out" / "ablation.json").read_text())) == 4


def test_after_a_failure_nothing_more_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def fail(run: Run, *_: object) -> float:
        begun.append(run.folder.name)
        raise AblationError("broken")

    monkeypatch.setattr(ablation, "execute", fail)
    with pytest.raises(AblationError, match="broken"):
        run_plan(plan(tmp_path, seeds=(0, 1, 2)), print)
    assert begun.count("base") <= 2  # the failed one, and one that a free worker may have taken
    assert set(begun) == {"base"}


STAND_IN = """
import os, signal, sys, time
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])

def save(*_):
    (out / "saved").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
out.mkdir(parents=True)
(out / "begun.tmp").write_text(str(os.getpid()))
(out / "begun.tmp").rename(out / "begun")
time.sleep(600)
"""


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # one that ended and whose new parent has not asked for it yet is not there any more
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_an_ablation_ends_its_trainings_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(ablation, "PROGRAM", (sys.executable, "-c", STAND_IN))
    chosen = plan(tmp_path, seeds=(0, 1, 2), jobs=2)
    begun: list[Path] = []

    def press() -> None:
        """Ask this process to end when two trainings run."""
        wait_until(lambda: len(list(tmp_path.glob("out/*/*/base/begun"))) == 2)
        begun.extend(tmp_path.glob("out/*/*/base/begun"))
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would stay ignored
    asking = threading.Thread(target=press)
    asking.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_plan(chosen, print)
    finally:
        signal.signal(signal.SIGHUP, before)
        asking.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert len(begun) == 2
    for file in begun:
        assert (file.parent / "saved").is_file()
        assert not is_there(int(file.read_text()))
    # nothing more was begun
    assert sorted(tmp_path.glob("out/*/*/*/begun")) == sorted(begun)


def are_gone(pids: list[int]) -> bool:
    return not any(map(is_there, pids))


def is_trained(run: Path, since: int) -> bool:
    """Whether a process has a run and has saved it since a time, in ns."""
    saved = run / "trainer.pt"
    return (run / LOCK_FILE).is_file() and saved.is_file() and saved.stat().st_mtime_ns > since


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a killed parent tells Linux alone")
def test_trainings_end_with_their_ablation_even_if_it_is_killed(tmp_path: Path) -> None:
    write_data(tmp_path / "reds")
    (tmp_path / "tiny.yaml").write_text(
        RECIPE.replace("projection: {}", "projection: {}, pairwise: {}")
    )
    command = [sys.executable, "-m", "boxseg", "ablate", "--data", "reds", "--config", "tiny.yaml"]
    command += ["--seed", "0", "--seed", "1", "--row", "boxinst", "--base-iters", "100000"]
    command += ["--out", "out", "--device", "cpu", "--jobs", "2"]
    runs = [tmp_path / "out" / "reds" / f"seed{seed}" / "base" for seed in (0, 1)]
    saves = dict.fromkeys(runs, 0)
    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for run in runs:
            wait_until(partial(is_trained, run, saves[run]), process)
        pids = [int((run / LOCK_FILE).read_text().split()[0]) for run in runs]
        process.send_signal(number)
        _, error = process.communicate(timeout=240)
        assert process.returncode == code, error
        if number == signal.SIGTERM:
            assert error.splitlines()[-1] == "error: interrupted"
            assert are_gone(pids)
        wait_until(partial(are_gone, pids))
        for run in runs:
            log = run.with_suffix(".log").read_text()
            assert log.splitlines()[-1].startswith("interrupted: saved after step")
            assert not (run / LOCK_FILE).exists()
            saves[run] = (run / "trainer.pt").stat().st_mtime_ns
    assert all(run.with_suffix(".log").read_text().count("interrupted: ") == 2 for run in runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "magic"], "'magic' is not a row; rows: condinst, boxinst"),
        (["--config", "no_such_recipe"], "no_such_recipe"),
        (["-o", "data.colour=1"], "data.colour is not a setting"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
    ],
)
def test_mistakes_are_found_before_the_first_training(
    tmp_path: Path, words: list[str], message: str
) -> None:
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text("{}")
    found = CliRunner().invoke(
        ablate, ["--data", str(tmp_path), "--out", str(tmp_path / "out"), *words]
    )
    assert found.exit_code != 0
    assert message in f"{found.output} {found.exception}"
    assert not (tmp_path / "out").exists()


def test_two_data_sets_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    words = []
    for place in ("here", "there"):
        folder = tmp_path / place / "parts"
        folder.mkdir(parents=True)
        for name in ("train.json", "val.json"):
            (folder / name).write_text("{}")
        words += ["--data", str(folder)]
    found = CliRunner().invoke(ablate, [*words, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert "more than one folder is named parts" in found.output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_plan_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text('{"iters": 7}\n')
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text("{}")
    found = CliRunner().invoke(ablate, ["--data", str(tmp_path), "--out", str(out)])
    assert found.exit_code == 2
    assert "holds an ablation with other settings" in found.output

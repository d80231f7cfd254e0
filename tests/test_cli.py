"""The command line: what it lists, and how it fails."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from boxseg import __version__, cli
from boxseg.errors import DataError, FileMismatchError, ParityError, counted


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Return a function that runs a command which raises the given exception."""

    def run(error: BaseException) -> int:
        @click.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(cli.boxseg.commands, "fail", fail)
        return cli.run(["fail"])

    return run


def test_help_lists_every_command_without_importing_it() -> None:
    # A fresh process, so that no other test has imported the modules already.
    code = (
        "import sys; from boxseg import cli; rc = cli.run(['--help']);"
        "heavy = {'torch', 'numpy', 'boxseg.train', 'boxseg.runtime', 'boxseg.export'};"
        "print(sorted(heavy & set(sys.modules)), rc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[] 0")
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_listed_command_exists_and_answers_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"boxseg {name}" in capsys.readouterr().out


def test_help_command_shows_the_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["help"]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert cli.run(["help", "export"]) == 0
    assert "Usage: boxseg export" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"boxseg, version {__version__}"


def test_things_are_counted_in_the_singular_and_the_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "box") for n in (1, 2)] == ["1 box", "2 boxes"]
    assert [counted(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], "error: no command 'nonsense'; there are data, train, bench-step, bench-lo"),
        (["--nonsense"], "error: No such option '--nonsense'"),
        (["help", "nonsense"], "error: no command 'nonsense'"),
    ],
)
def test_wrong_words_exit_2_in_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(expected)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["predict", "a.onnx", "b.png", "--conf"], "boxseg predict"),
        (["--traceback", "doctor", "--json"], "boxseg doctor"),
        (["help", "--help=3"], "boxseg help"),
        (["group", "inner", "--size"], "boxseg group inner"),
        (["group", "--help=3"], "boxseg group"),
        (["--traceback=3", "predict"], "boxseg"),
    ],
)
def test_an_option_without_its_value_names_the_help_of_its_command(
    words: list[str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.group()
    def group() -> None: ...

    @group.command()
    @click.option("--size")
    def inner(size: str) -> None: ...

    monkeypatch.setitem(cli.boxseg.commands, "group", group)
    assert cli.run(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"(see {command} --help)")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no image in x.json;\nneeds one"), 3, "no image in x.json; needs one"),
        (ParityError("boxes differ by 3.0"), 6, "boxes differ by 3.0"),
        (DataError("\x1b[2J\0.png: no such file"), 3, r"\x1b[2J\x00.png: no such file"),
        (FileMismatchError("x.pt is not a model file"), 8, "x.pt is not a model file"),
        (ValueError("model.imgsz must be at least 32, got 8"), 2, "model.imgsz must be"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "x.json: No such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xxx"), 2, "xxx: File name too long"),
        (PermissionError(13, "Permission denied", "/out"), 1, "/out: Permission denied"),
        (ModuleNotFoundError("no", name="openvino"), 4, "pip install 'boxseg[openvino]'"),
        (RuntimeError("shape"), 1, "internal: RuntimeError: shape"),
        (RuntimeError("[x.cpp:7] can't allocate memory: 9 bytes"), 1, "out of memory; try a sm"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "out of memory; try a smaller"),
        (click.BadParameter("must be a multiple of 32", param_hint="--imgsz"), 2, "--imgsz"),
    ],
)
def test_failures_become_one_line_and_their_exit_code(
    failing: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    assert failing(error) == code
    printed = capsys.readouterr().err.strip()  # click ends the line that ^C stands in
    assert printed.startswith("error: ")
    assert line in printed
    assert "\n" not in printed
    assert "Traceback" not in printed


MISSING_MODEL = [
    ["eval", "gone.pt", "--data", "."],
    ["predict", "gone.onnx", "a.png", "--no-pictures"],
    ["bench", "gone_openvino_model"],
    ["export", "gone"],
    ["verify", "gone.onnx", "--against", "gone"],
    ["train", "--config", "scenes_demo", "--data", ".", "--weights", "gone.pt"],
    ["data", "depth", ".", "--predictor", "gone.onnx"],
]


@pytest.mark.parametrize("words", MISSING_MODEL, ids=lambda words: words[0])
def test_a_model_that_is_not_there_exits_2_in_every_command(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("torch", "lightning_fabric"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "a.png").touch()
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert "gone" in error
    assert error.count("\n") == 1


def test_broken_json_is_a_data_error(failing: Callable[[BaseException], int]) -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert failing(caught.value) == 3


def test_pydantic_errors_become_paths_with_values(
    failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[misc, name-defined]  # optional package
        steps: int

    class Outer(pydantic.BaseModel):  # type: ignore[misc, name-defined]  # optional package
        schedule: Inner

    with pytest.raises(pydantic.ValidationError) as caught:
        Outer.model_validate({"schedule": {"steps": "many"}})
    assert failing(caught.value) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: schedule.steps: ")
    assert "got 'many'" in printed
    assert printed.count("\n") == 1


def test_traceback_is_printed_only_on_request(
    failing: Callable[[BaseException], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BOXSEG_TRACEBACK", "1")
    assert failing(RuntimeError("shape")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_missing_package_is_answered_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        cli.COMMANDS, "gone", cli.LazyCommand("no_such_package.commands", "gone", "Gone.", "train")
    )
    assert cli.run(["gone"]) == 4
    assert "needs no_such_package, which is not installed; pip install 'boxseg[train]'" in (
        capsys.readouterr().err
    )


def test_exit_code_of_a_command_that_leaves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.pass_context
    def leave(ctx: click.Context) -> None:
        ctx.exit(3)

    monkeypatch.setitem(cli.boxseg.commands, "leave", leave)
    assert cli.run(["leave"]) == 3

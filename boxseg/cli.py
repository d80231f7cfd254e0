"""The `boxseg` command: names to packages, loaded on use, every failure one line.

A robot without torch can run `boxseg bench`; a command that needs an extra which is not installed
answers with the install command. Exit codes are listed in `boxseg.errors`.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from boxseg import __version__
from boxseg.errors import BackendMissingError, BoxSegError, DataError, one_line

INTERRUPTED = 130


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives and what `boxseg --help` says about it."""

    module: str
    attribute: str
    help: str
    extra: str
    """Extra of the package that installs what the command imports."""


COMMANDS: dict[str, LazyCommand] = {
    "data": LazyCommand(
        "boxseg.train.data_commands",
        "data",
        "Render the default data, check a COCO file, make depth maps.",
        "train",
    ),
    "train": LazyCommand(
        "boxseg.train.commands", "train", "Train a network from boxes by a recipe.", "train"
    ),
    "bench-step": LazyCommand(
        "boxseg.train.step_benchmark",
        "bench_step",
        "Time a training step beside torchvision's detectors.",
        "train",
    ),
    "bench-loader": LazyCommand(
        "boxseg.train.loader_benchmark",
        "bench_loader",
        "Time the loading of images, part by part.",
        "train",
    ),
    "ablate": LazyCommand(
        "boxseg.train.ablation",
        "ablate",
        "Train the rows of the method's tables and compare them.",
        "train",
    ),
    "eval": LazyCommand(
        "boxseg.runtime.commands", "evaluate", "Score a file on a COCO data set.", "eval"
    ),
    "predict": LazyCommand(
        "boxseg.runtime.commands",
        "predict",
        "Find instances in images, folders or videos.",
        "onnxruntime",
    ),
    "export": LazyCommand(
        "boxseg.export.commands", "export", "Write a verified ONNX or OpenVINO file.", "export"
    ),
    "verify": LazyCommand(
        "boxseg.export.commands",
        "verify",
        "Replay a file's golden sample, or hold it against its network.",
        "export",
    ),
    "bench": LazyCommand(
        "boxseg.runtime.bench_command",
        "bench",
        "Compare deployed files: stage times, memory, accuracy.",
        "onnxruntime",
    ),
    "bench-native": LazyCommand(
        "boxseg.runtime.commands",
        "bench_native",
        "Time the native runtime against the fastest peers.",
        "dev",
    ),
    "doctor": LazyCommand(
        "boxseg.runtime.commands", "doctor", "Say what this machine can run.", "onnxruntime"
    ),
}

# The distribution that provides an import, where the two names differ.
EXTRA_OF_IMPORT = {
    "av": "video",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pycocotools": "eval",
    "tensorrt": "tensorrt",
}


def open_torch(path: str | Path, device: str | None = None) -> Any:
    """Open a model file as a backend for `Segmenter`; torch is imported here and not before."""
    inference = importlib.import_module("boxseg.inference")
    return inference.open_torch_backend(path, device)


class LazyGroup(click.Group):
    """Lists its commands from a table and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a project: data first, deployment last."""
        return [*COMMANDS, *(name for name in self.commands if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        try:
            module = importlib.import_module(entry.module)
        except ModuleNotFoundError as error:
            raise _missing_package(cmd_name, entry.extra, error) from error
        command: click.Command = getattr(module, entry.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown name with the list of known ones."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"no command {args[0]!r}; there are {known}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing anything."""
        rows = [(name, entry.help) for name, entry in COMMANDS.items()]
        rows += [(name, command.get_short_help_str(60)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _missing_package(command: str, extra: str, error: ModuleNotFoundError) -> BackendMissingError:
    """Turn a failed import into the install command that mends it."""
    name = (error.name or str(error)).split(".")[0]
    if name == "boxseg":
        return BackendMissingError(
            f"boxseg {command} is not part of this installation ({error.name} is missing); "
            "pip install --force-reinstall boxseg"
        )
    extra = EXTRA_OF_IMPORT.get(name, extra)
    return BackendMissingError(
        f"boxseg {command} needs {name}, which is not installed; pip install 'boxseg[{extra}]'"
    )


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command answers --help. Exit codes: 0 ok, 1 failed, 2 usage, 3 data, "
    "4 package missing, 5 operator, 6 parity, 7 precision, 8 file or version, 9 unverified, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="boxseg")
@click.option(
    "--traceback",
    "show_traceback",
    is_flag=True,
    help="On failure, print where it happened (also BOXSEG_TRACEBACK=1).",
)
@click.pass_context
def boxseg(ctx: click.Context, show_traceback: bool) -> None:
    """Instance segmentation that learns from boxes and runs on a robot."""
    ctx.ensure_object(dict)
    ctx.obj["open_torch"] = open_torch
    if show_traceback:
        ctx.obj["traceback"] = True


@boxseg.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(ctx: click.Context, command: str | None) -> None:
    """Show help, like --help."""
    parent = ctx.parent
    if parent is None:  # invoked by itself, as a test may do
        raise click.UsageError("help is a part of boxseg: boxseg help [COMMAND]")
    if command is None:
        click.echo(parent.get_help())
        return
    name, found, _ = boxseg.resolve_command(parent, [command])
    if found is not None:
        with click.Context(found, info_name=name, parent=parent) as inner:
            click.echo(found.get_help(inner))


def _validation_message(error: ValueError) -> str:
    """Say a ValueError in one line; a recipe's list of errors becomes `path: reason; ...`."""
    details: Any = getattr(error, "errors", None)
    if not callable(details):
        return str(error) or type(error).__name__
    parts = []
    items: Any = details()
    for item in items:
        path = ".".join(str(step) for step in item.get("loc", ()))
        reason = str(item.get("msg", "")).removeprefix("Value error, ")
        shown = item.get("input")
        got = f", got {shown!r}" if isinstance(shown, (str, int, float, bool, type(None))) else ""
        if item.get("type") == "value_error":
            got = ""  # the model's own message names the value
        parts.append(f"{path}: {reason}{got}" if path else f"{reason}{got}")
    return "; ".join(parts)


def _os_message(error: OSError) -> str:
    """Say what happened to which file."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's way of saying so; torch itself may not be installed."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _command_path(words: Sequence[str]) -> str:
    """Return the names of the command that a line calls, `boxseg data scenes`.

    For errors of click's that do not say it. Options of groups take no value: one that was given
    any is what is wrong.
    """
    path = "boxseg"
    command: click.Group = boxseg
    for word in words:
        if word.startswith("-"):
            if "=" in word:
                break
            continue
        found = command.get_command(click.Context(command), word)
        if found is None:
            break
        path = f"{path} {word}"
        if not isinstance(found, click.Group):
            break
        command = found
    return path


def explain(error: BaseException, extra: str = "all", command: str = "boxseg") -> tuple[str, int]:
    """Return the one line and the exit code for an exception that ended a command.

    Args:
        error: What was raised.
        extra: Extra that installs what the command imports.
        command: Whose help to name where the error does not say it.
    """
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", INTERRUPTED
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else command
        return f"{error.format_message().rstrip('.')} (see {path} --help)", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, BoxSegError):
        return str(error), error.exit_code
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return f"not readable as text or JSON: {error}", DataError.exit_code
    if isinstance(error, ValueError):
        return _validation_message(error), click.UsageError.exit_code
    wrong_path = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, OSError) and (
        isinstance(error, wrong_path) or error.errno == errno.ENAMETOOLONG
    ):
        return _os_message(error), click.UsageError.exit_code
    if isinstance(error, OSError):
        return _os_message(error), BoxSegError.exit_code
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "out of memory; try a smaller batch or image size", BoxSegError.exit_code
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or str(error)).split(".")[0]
        extra = EXTRA_OF_IMPORT.get(name, extra)
        return (
            f"{name} is not installed; pip install 'boxseg[{extra}]'",
            BackendMissingError.exit_code,
        )
    return (
        f"internal: {type(error).__name__}: {error} (boxseg --traceback shows where)",
        BoxSegError.exit_code,
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: Words after `boxseg`; None takes those of the process.

    Returns:
        The exit code, one of those listed in `boxseg.errors`.
    """
    state: dict[str, Any] = {}
    words = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        result = boxseg.main(words, prog_name="boxseg", standalone_mode=False, obj=state)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if state.get("traceback") or os.environ.get("BOXSEG_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        name = next((word for word in words if word in COMMANDS), None)
        asked = isinstance(error, click.UsageError) and error.ctx is None
        line, code = explain(
            error,
            COMMANDS[name].extra if name else "all",
            _command_path(words) if asked else "boxseg",
        )
        click.echo(f"error: {one_line(line)}", err=True)
        return code
    # click hands back the code of ctx.exit(); commands themselves return nothing
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()

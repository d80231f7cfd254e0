"""Errors that end a command, each with its documented exit code.

    BoxSegError                 1   the run failed
    ├── DataError               3   images, annotations or a data folder
    ├── BackendMissingError     4   an engine, an optional package or a device is not there
    ├── UnsupportedOperatorError 5  a graph holds what an engine cannot run
    ├── ParityError             6   an exported file does not answer like the network
    ├── PrecisionError          7   the asked precision was not built
    ├── FileMismatchError       8   a foreign, damaged or wrong-version file
    └── UnverifiedError         9   written, but could not be run here

Wrong options and values are ValueError or click's UsageError (2), and so are the path of a model
that is not there and a run folder that another process has: 8 is for a file that is there and is
not what it should be. What is wrong with data, missing files included, is 3. An interrupt is 130.

What others chose, names of files and classes, goes through `printable` or `one_line` to a terminal.
"""


def printable(text: str) -> str:
    """Write what cannot be printed as its number, so that a foreign name commands no terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def one_line(text: str) -> str:
    """Join lines by a space, so that a message stays one line in a log; the rest is printable."""
    return printable(" ".join(text.split()))


def counted(number: int, noun: str) -> str:
    """Write how many there are of something: 1 image, 2 images, 0 classes."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number} {noun}{ending}"


class BoxSegError(Exception):
    """Ends a command with one line and an exit code."""

    exit_code = 1


class DataError(BoxSegError):
    """Images, annotations or a data folder cannot be used."""

    exit_code = 3


class BackendMissingError(BoxSegError):
    """An engine, an optional package or a device is missing; the message says what to do."""

    exit_code = 4


class UnsupportedOperatorError(BoxSegError):
    """A graph holds an operator that the engine cannot run."""

    exit_code = 5


class ParityError(BoxSegError):
    """An exported file does not answer like the network it came from."""

    exit_code = 6


class PrecisionError(BoxSegError):
    """The asked precision was not built or is not executed."""

    exit_code = 7


class FileMismatchError(BoxSegError):
    """A model or deployed file is foreign, damaged or of another version."""

    exit_code = 8


class UnverifiedError(BoxSegError):
    """A file was written but could not be run on this machine."""

    exit_code = 9

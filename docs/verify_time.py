"""How long `boxseg verify FILE` takes: the whole process, from its start to its end.

    python docs/verify_time.py verify.json best.onnx best_openvino_model

Each file once untimed, so that the system has it and the packages in memory; then all take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from boxseg.runtime.benchmark import describe_machine


def seconds(file: Path) -> float:
    """Return the seconds of one replay; a file that fails ends the program."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "boxseg", "verify", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Time all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    machine = describe_machine()
    taken: dict[Path, list[float]] = {file: [] for file in given.files}
    for turn in range(given.repeats + 1):
        for file in given.files:
            spent = seconds(file)
            if turn:
                taken[file].append(spent)
    rows = []
    for file, times in taken.items():
        rows.append({"file": file.name, "seconds": times, "median": statistics.median(times)})
        print(f"{file.name}: {statistics.median(times):.2f} s, median of {len(times)}")
    given.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

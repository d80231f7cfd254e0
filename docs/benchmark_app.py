"""Engine times of `boxseg bench` beside those of OpenVINO's own benchmark_app, on the same files.

    python docs/benchmark_app.py compared.json best_openvino_model ... --threads 2 --repeats 3

The two programs take turns, each in a process of its own. Inside: for boxseg the stage `engine`,
the request with its copies; for benchmark_app the synchronous request on random bytes. Both run one
stream (benchmark_app takes a number of threads with no hint) and compute fp32 in fp32.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from boxseg.runtime.benchmark import describe_machine


def ours(file: Path, threads: int, frames: int) -> float:
    """Return the median of the engine in `boxseg bench`, ms."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "bench.json"
        words = ["bench", file, "--threads", threads, "--iters", frames, "--json", record]
        run = [sys.executable, "-m", "boxseg", *map(str, words)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        stages = json.loads(record.read_text(encoding="utf-8"))["models"][0]["stages"]
        return float(stages["engine"]["p50"])


def theirs(file: Path, threads: int, frames: int) -> float:
    """Return the median latency that benchmark_app reports, ms."""
    (graph,) = file.glob("*.xml")
    program = str(Path(sys.executable).with_name("benchmark_app"))
    words = ["-m", graph, "-d", "CPU", "-hint", "none", "-nstreams", 1, "-api", "sync"]
    words += ["-niter", frames, "-nthreads", threads, "-infer_precision", "f32"]
    run = [program, *map(str, words)]
    printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Median:\s*([\d.]+) ms", printed)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median for {graph}:\n{printed}")
    return float(found[1])


def main() -> None:
    """Compare the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=20)
    given = parser.parse_args()
    machine = describe_machine()
    times: dict[Path, list[tuple[float, float]]] = {file: [] for file in given.files}
    for _ in range(given.repeats):
        for file in given.files:
            pair = [which(file, given.threads, given.frames) for which in (ours, theirs)]
            times[file].append((pair[0], pair[1]))
    rows = []
    for file, pairs in times.items():
        boxseg, app = (statistics.median(values) for values in zip(*pairs, strict=True))
        row = {"file": file.name, "boxseg_ms": boxseg, "benchmark_app_ms": app}
        rows.append({**row, "ratio": boxseg / app, "repeats": pairs})
        print(f"{file.name}: boxseg {boxseg:.2f} ms, benchmark_app {app:.2f}, {boxseg / app:.3f} x")
    settings = {key: getattr(given, key) for key in ("threads", "repeats", "frames")}
    report = {"machine": machine, "settings": settings, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

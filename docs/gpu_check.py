"""Check a GPU in one command: `make gpu-check`, results in docs/results/gpu/.

    python docs/gpu_check.py OUT [--skip-ablation] [--rehearse]

On rendered scenes: losses of the same steps on CPU and GPU in fp32, mixed precision against fp32,
training images per second, plain and compiled, and where a step's time goes, the ablation rows that
fit in ten minutes (where $BOXSEG_DATA is), and export with a benchmark for the engines that are
installed. Writes OUT/NAME.json and OUT/NAME.md, NAME being the GPU's. A part that fails does not
take the others along. Exit code 1 without a GPU, or if a part or a check fails.

--rehearse does all of it on the CPU with tiny images, to find mistakes of this script where there
is no GPU. Its numbers mean nothing, and it writes OUT/rehearsal.json and OUT/rehearsal.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxseg.checkpoint import save_model
from boxseg.configs import find_recipe
from boxseg.runtime.benchmark import describe_machine
from boxseg.student import Student
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import read_recipe
from boxseg.train.scenes import write_scenes
from boxseg.train.step_benchmark import largest_batch
from boxseg.train.step_profile import WAITING

FP32_TOLERANCE = 1e-3
"""Greatest relative difference of a loss between CPU and GPU, without TF32."""
MIXED_TOLERANCE = 0.1
"""Greatest relative difference of a loss between mixed precision and fp32 at the first step."""
THROUGHPUT = {"boxinst_resnet50": 40, "boxseg_depth_resnet50": 25}
"""Recipes, and the images/s asked of a GPU of the H200's class."""
MOST_WAITING = 0.05
"""Share of a step that may be spent waiting for data."""
ABLATION_SECONDS = 600


@dataclass(frozen=True)
class Scale:
    """How much is done, and where."""

    device: str
    small: tuple[str, ...]
    """Settings of the steps whose losses are compared."""
    large: tuple[str, ...]
    """Settings of the steps that are timed, and of what is exported."""
    large_size: tuple[int, int]
    """H, W of the scenes for those."""
    large_images: int
    mixed: tuple[str, ...]
    """Precisions that are held against fp32."""
    compiled: tuple[bool, ...]
    steps: int
    """Steps that are timed; half as many are profiled."""
    ablation: tuple[str, ...]
    """Words for `boxseg ablate`."""


FULL = Scale(
    device="cuda:0",
    small=("model.weights=null", "data.short_sides=[256]", "data.flip=off", "data.batch_size=2"),
    large=(
        *("model.weights=null", "data.short_sides=[800]", "data.batch_size=16"),
        "data.workers=8",
    ),
    large_size=(800, 1066),
    large_images=64,
    mixed=("bf16-mixed", "16-mixed"),
    compiled=(False, True),
    steps=20,
    ablation=("--precision", "bf16-mixed", "--base-iters", "300", "--iters", "300"),
)
_TINY = ("model.weights=null", "model.imgsz=[64,96]", "model.short_long=null", "data.long_side=96")
REHEARSAL = Scale(
    device="cpu",
    small=(*_TINY, "data.short_sides=[64]", "data.flip=off", "data.batch_size=2"),
    large=(*_TINY, "data.short_sides=[64]", "data.batch_size=2", "data.workers=1"),
    large_size=(96, 128),
    large_images=8,
    mixed=("bf16-mixed",),
    compiled=(False,),
    steps=2,
    ablation=(
        *("--base-iters", "2", "--iters", "2"),
        *(word for setting in (*_TINY, "data.short_sides=[64]") for word in ("-o", setting)),
    ),
)


def build(
    config: str, data: Path, device: str, settings: Sequence[str], *, compiled: bool = False
) -> Engine:
    """Build a run of a recipe, not started."""
    recipe = read_recipe(find_recipe(config), settings)
    return Engine(
        recipe, RunSettings(data=data, out=data / "run", device=device, compiled=compiled)
    )


def losses_of(engine: Engine, steps: int) -> list[dict[str, float]]:
    """Return the losses of some optimizer steps on the same images."""
    batch = largest_batch(engine)
    engine.module.train()
    found = []
    for _ in range(steps):
        losses, _ = engine.train_on(batch, engine.recipe.schedule.learning_rate(0))
        found.append(losses)
        engine.step += 1
    return found


def largest_difference(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> tuple[float, str]:
    """Return the greatest |a - b| / max(|b|, 0.01) of all losses, and where it is.

    A loss that is no number differs by infinity.
    """
    worst = (0.0, "")
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in b:
            apart = abs(a[name] - b[name]) / max(abs(b[name]), 0.01)
            if not apart <= worst[0]:
                worst = (apart if math.isfinite(apart) else math.inf, f"{name} of step {step}")
    return worst


def check_correctness(data: Path, scale: Scale) -> list[dict[str, Any]]:
    """Hold three fp32 steps of the GPU against the CPU's, and a mixed step against fp32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def losses(device: str, precision: str, steps: int) -> list[dict[str, float]]:
        settings = (*scale.small, f"precision={precision}")
        return losses_of(build("boxinst_mobilenetv2", data, device, settings), steps)

    try:
        cpu = losses("cpu", "32-true", 3)
        gpu = losses(scale.device, "32-true", 3)
        pairs = [("fp32, GPU against CPU, 3 steps", gpu, cpu, FP32_TOLERANCE)]
        for precision in scale.mixed:
            name = f"{precision} against fp32, GPU, 1 step"
            pairs.append((name, losses(scale.device, precision, 1), gpu[:1], MIXED_TOLERANCE))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    rows = []
    for name, ours, theirs, tolerance in pairs:
        apart, where = largest_difference(ours, theirs)
        rows.append(
            {
                "check": name,
                "largest_relative_difference": apart,
                "at": where,
                "tolerance": tolerance,
                "passed": apart <= tolerance,
            }
        )
    return rows


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Utilisation:
    """What nvidia-smi says of the first GPU, five times a second."""

    COMMAND = (
        *("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"),
        *("--id=0", "--loop-ms=200"),
    )

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Start watching; without nvidia-smi there is nothing to see."""
        self._process: subprocess.Popen[str] | None = None
        if shutil.which(command[0]) is not None:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

    def end(self) -> float | None:
        """Stop watching, and return the mean in percent; None if nothing was seen."""
        if self._process is None:
            return None
        self._process.terminate()
        text, _ = self._process.communicate()
        seen = [float(line) for line in text.splitlines() if line.strip().isdigit()]
        return sum(seen) / len(seen) if seen else None


def measure_throughput(config: str, data: Path, scale: Scale, *, compiled: bool) -> dict[str, Any]:
    """Profile a few steps in the middle of the schedule, then time some of one batch in memory."""
    settings = (*scale.large, "precision=bf16-mixed")
    engine = build(config, data, scale.device, settings, compiled=compiled)
    on_gpu = scale.device.startswith("cuda")
    schedule = engine.recipe.schedule
    begin = time.perf_counter()
    profile = engine.profile(scale.steps // 2)
    profiling = time.perf_counter() - begin
    batch = largest_batch(engine)
    if on_gpu:
        batch = batch.pin_memory()

    def some(steps: int) -> float:
        wait_for(scale.device)
        begin = time.perf_counter()
        for _ in range(steps):
            engine.train_on(batch, schedule.learning_rate(0))
            engine.step += 1
        wait_for(scale.device)
        return (time.perf_counter() - begin) / steps

    some(max(1, scale.steps // 4))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(scale.device)
    watch = Utilisation()
    seconds = some(scale.steps)
    utilisation = watch.end()
    peak = torch.cuda.max_memory_allocated(scale.device) / 2**30 if on_gpu else None
    return {
        "recipe": config,
        "compiled": compiled,
        "images": len(batch.image_ids),
        "padded_size": list(batch.images.shape[-2:]),
        "step_seconds": seconds,
        "images_per_second": len(batch.image_ids) / seconds,
        "peak_memory_gib": peak,
        "utilisation_percent": utilisation,
        "waiting_share": profile.seconds[WAITING] / sum(profile.seconds.values()),
        "seconds_with_profile": profiling,
        "profile": profile.lines(),
    }


def run(words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a command of boxseg; one that takes too long is ended with all that it started."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "boxseg", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
    return {
        "command": " ".join(("boxseg", *words[:1])),
        "code": process.returncode,
        "seconds": time.perf_counter() - begin,
        "output": text.splitlines()[-40:],
    }


def engines(device: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the formats whose engines are installed for a device, with the options of export."""
    found: list[tuple[str, tuple[str, ...]]] = []
    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        if provider in onnxruntime.get_available_providers():
            found.append(("onnx", ()))
    if device.startswith("cuda") and importlib.util.find_spec("tensorrt") is not None:
        found += [("trt", ()), ("trt", ("--half",))]
    return found


@torch.no_grad()
def find_something(student: Student) -> None:
    """Let an untrained network find some objects; without any, an export compares no masks."""
    generator = torch.Generator().manual_seed(0)
    student.head.class_logits.weight.normal_(std=0.05, generator=generator)
    # with z the logit's share of chance, sqrt(sigmoid(1.7 z - 6) / 2) exceeds 0.22 for z > 2.2
    nn.init.constant_(student.get_parameter("head.class_logits.bias"), -6.0)


def export_and_bench(data: Path, place: Path, scale: Scale) -> list[dict[str, Any]]:
    """Export a ResNet-50 for every engine that is there, and time the file."""
    student = build("boxinst_resnet50", data, "cpu", scale.large).student.eval()
    find_something(student)
    save_model(place / "model.pt", student)
    kind_of_device = scale.device.partition(":")[0]
    rows = []
    for number, (kind, options) in enumerate(engines(scale.device)):
        out = place / f"{number}.{'onnx' if kind == 'onnx' else 'engine'}"
        words = ["export", str(place / "model.pt"), "--format", kind, *options, "--out", str(out)]
        done = run([*words, "--data", str(data), "--images", "8"], 600)
        rows.append({"format": kind, "options": list(options), **done})
        if done["code"] == 0:
            timed = run(["bench", str(out), "--device", kind_of_device, "--iters", "100"], 300)
            rows.append({"format": kind, "options": list(options), **timed})
    return rows


def ablate(data: Path | None, place: Path, scale: Scale) -> dict[str, Any] | None:
    """Train the rows that fit into ten minutes; None where there is no data."""
    if data is None or not (data / "train.json").is_file():
        return None
    words = ["ablate", "--data", str(data), "--seed", "0", "--row", "mqs", "--row", "pc"]
    words += ["--device", scale.device.partition(":")[0], *scale.ablation]
    done = run([*words, "--out", str(place / "ablation")], ABLATION_SECONDS)
    file = place / "ablation" / "ablation.json"
    return {**done, "rows": json.loads(file.read_text()) if file.is_file() else []}


def describe_gpu(device: str) -> dict[str, Any]:
    """Return what the numbers depend on beside the machine."""
    if not device.startswith("cuda"):
        nothing = dict.fromkeys(("memory_gib", "compute_capability", "cuda", "cudnn"))
        return {"gpu": "rehearsal", **nothing}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['recipe']}{', compiled' if row['compiled'] else ''}"


def markdown(report: Mapping[str, Any]) -> list[str]:
    """Return the report for people."""
    gpu, machine = report["gpu"], report["machine"]
    lines = [
        f"# {gpu['gpu']}",
        "",
        f"{gpu['memory_gib']} GiB, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, "
        f"torch {machine['packages'].get('torch', '?')}. `make gpu-check`.",
        "",
        "| check | largest relative difference | allowed | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['check']} | {row['largest_relative_difference']:.2g} ({row['at']}) | "
        f"{row['tolerance']:g} | {'passed' if row['passed'] else '**failed**'} |"
        for row in report["correctness"]
    ]
    lines += [
        "",
        "Training, bf16, one batch in memory, network untrained (its teacher finds little):",
        "",
        "| recipe | images | images/s | asked | peak memory, GiB | GPU busy | waiting for data "
        f"(asked: at most {MOST_WAITING:.0%}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["throughput"]:
        height, width = row["padded_size"]
        memory, busy = row["peak_memory_gib"], row["utilisation_percent"]
        lines.append(
            f"| {_name(row)} | {row['images']} of {height} x {width} | "
            f"{row['images_per_second']:.1f} | {THROUGHPUT.get(row['recipe'], '-')} | "
            f"{'-' if memory is None else f'{memory:.1f}'} | "
            f"{'-' if busy is None else f'{busy:.0f} %'} | {row['waiting_share']:.1%} |"
        )
    for row in report["throughput"]:
        seconds = row["seconds_with_profile"]
        lines += ["", f"Where a step of {_name(row)} goes, loading included, after the first three"]
        lines += [f"steps; all steps of the profile took {seconds:.0f} s:", ""]
        lines += [f"    {line}" for line in row["profile"]]
    for row in report["export"]:
        name = " ".join((row["format"], *row["options"]))
        state = "done" if row["code"] == 0 else f"ended with {row['code']}"
        lines += ["", f"`{row['command']}`, {name}: {state} in {row['seconds']:.0f} s", ""]
        lines += [f"    {line}" for line in row["output"][-12:]]
    if report["ablation"] is not None:
        done = report["ablation"]
        lines += [
            "",
            f"Ablation rows: {len(done['rows'])} in {done['seconds']:.0f} s",
            "",
            *done["output"],
        ]
    if report["failures"]:
        lines += ["", "Parts that failed:", "", *(f"- {line}" for line in report["failures"])]
    return lines


def failed(report: Mapping[str, Any]) -> list[str]:
    """Return what went wrong; an ablation that ran out of time did not."""
    wrong = [row["check"] for row in report["correctness"] if not row["passed"]]
    wrong += [f"{row['command']} {row['format']}" for row in report["export"] if row["code"]]
    done = report["ablation"]
    if done is not None and done["code"] not in (0, -signal.SIGKILL):
        wrong.append(done["command"])
    return [*wrong, *report["failures"]]


class Parts:
    """Does one part after the other; what fails is remembered, and the others go on."""

    def __init__(self) -> None:
        """Start without failures."""
        self.failures: list[str] = []

    def __call__(self, name: str, part: Callable[[], Any], otherwise: Any) -> Any:
        """Return what a part returns, or `otherwise` if it fails."""
        print(f"gpu-check: {name}", file=sys.stderr, flush=True)
        try:
            return part()
        except Exception as error:  # whatever it is, the other parts are worth having
            traceback.print_exc()
            line = (str(error).strip() or "?").splitlines()[0]
            self.failures.append(f"{name}: {type(error).__name__}: {line}")
            return otherwise
        finally:
            # the next part, or a process that it starts, needs the memory
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def check(place: Path, scale: Scale, ablation_data: Path | None) -> dict[str, Any]:
    """Do everything; return the report.

    Args:
        place: A folder for data and files.
        scale: How much, and where.
        ablation_data: Data folder of the ablation; None leaves it out.
    """
    small, large = place / "small", place / "large"
    for _ in write_scenes(small, images=8, val_images=2, seed=0):
        pass
    for _ in write_scenes(
        large, images=scale.large_images, val_images=8, seed=0, size=scale.large_size
    ):
        pass
    parts = Parts()
    throughput = []
    for name in THROUGHPUT:
        for compiled in scale.compiled:
            row = parts(
                f"{name}{', compiled' if compiled else ''}",
                partial(measure_throughput, name, large, scale, compiled=compiled),
                None,
            )
            throughput += [] if row is None else [row]
    return {
        "gpu": describe_gpu(scale.device),
        "machine": describe_machine(),
        "correctness": parts("correctness", lambda: check_correctness(small, scale), []),
        "throughput": throughput,
        "export": parts("export", lambda: export_and_bench(large, place, scale), []),
        "ablation": parts(
            "ablation",
            lambda: ablate(ablation_data, place, scale),
            None,
        ),
        "failures": parts.failures,
    }


def main() -> int:
    """Check the first GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--skip-ablation", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny images")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA GPU here", file=sys.stderr)
        return 1
    root = os.environ.get("BOXSEG_DATA")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = None if root is None else Path(root) / "pennfudan"
        if given.rehearse:
            data = place / "small"
        if given.skip_ablation:
            data = None
        report = check(place, REHEARSAL if given.rehearse else FULL, data)
    name = re.sub(r"\W+", "_", report["gpu"]["gpu"]).strip("_").lower()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = markdown(report)
    (given.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    wrong = failed(report)
    if wrong:
        print(f"gpu-check: failed: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

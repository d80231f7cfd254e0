"""Check a GPU in one command: `make gpu-check`, results in docs/results/gpu/.

    python docs/gpu_check.py OUT [--skip-ablation]

On rendered scenes: losses of the same steps on CPU and GPU in fp32, mixed precision against fp32,
training images per second and where a step's time goes, the ablation rows that fit in ten minutes
(where $BOXSEG_DATA is), and export with a benchmark for the engines that are installed. Writes
OUT/NAME.json and OUT/NAME.md, NAME being the GPU's. Exit code 1 without a GPU, or if a check fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boxseg.checkpoint import save_model
from boxseg.configs import find_recipe
from boxseg.runtime.benchmark import describe_machine
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import read_recipe
from boxseg.train.scenes import write_scenes
from boxseg.train.step_benchmark import largest_batch

FP32_TOLERANCE = 1e-3
"""Greatest relative difference of a loss between CPU and GPU, without TF32."""
BF16_TOLERANCE = 0.1
"""Greatest relative difference of a loss between bf16 and fp32 at the first step."""
THROUGHPUT = ("boxinst_resnet50", "boxseg_depth_resnet50")
ABLATION_SECONDS = 600
SMALL = ("model.weights=null", "data.short_sides=[256]", "data.flip=off", "data.batch_size=2")
LARGE = ("model.weights=null", "data.short_sides=[800]", "data.batch_size=16")


def build(config: str, data: Path, device: str, settings: Sequence[str]) -> Engine:
    """Build a run of a recipe, not started."""
    recipe = read_recipe(find_recipe(config), settings)
    return Engine(recipe, RunSettings(data=data, out=data / "run", device=device))


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


def check_correctness(data: Path, device: str) -> list[dict[str, Any]]:
    """Hold three fp32 steps of the GPU against the CPU's, and a bf16 step against fp32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    settings = (*SMALL, "precision=32-true")
    cpu = losses_of(build("boxinst_mobilenetv2", data, "cpu", settings), 3)
    gpu = losses_of(build("boxinst_mobilenetv2", data, device, settings), 3)
    mixed = build("boxinst_mobilenetv2", data, device, (*SMALL, "precision=bf16-mixed"))
    bf16 = losses_of(mixed, 1)
    torch.backends.cudnn.allow_tf32 = True
    rows = []
    for name, ours, theirs, tolerance in (
        ("fp32, GPU against CPU, 3 steps", gpu, cpu, FP32_TOLERANCE),
        ("bf16 against fp32, GPU, 1 step", bf16, gpu[:1], BF16_TOLERANCE),
    ):
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


def measure_throughput(config: str, data: Path, device: str) -> dict[str, Any]:
    """Profile a few steps in the middle of the schedule, then time some of one batch in memory."""
    engine = build(config, data, device, (*LARGE, "precision=bf16-mixed"))
    schedule = engine.recipe.schedule
    profile = engine.profile(10).lines()
    batch = largest_batch(engine).pin_memory()

    def some(steps: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            engine.train_on(batch, schedule.learning_rate(0))
            engine.step += 1
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    some(5)
    torch.cuda.reset_peak_memory_stats()
    seconds = some(20)
    return {
        "recipe": config,
        "images": len(batch.image_ids),
        "padded_size": list(batch.images.shape[-2:]),
        "step_seconds": seconds,
        "images_per_second": len(batch.image_ids) / seconds,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "profile": profile,
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


def engines() -> list[tuple[str, tuple[str, ...]]]:
    """Return the formats whose engines are installed for a GPU, with the options of export."""
    found: list[tuple[str, tuple[str, ...]]] = []
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            found.append(("onnx", ()))
    if importlib.util.find_spec("tensorrt") is not None:
        found += [("trt", ()), ("trt", ("--half",))]
    return found


def export_and_bench(data: Path, place: Path, device: str) -> list[dict[str, Any]]:
    """Export a ResNet-50 for every engine that is there, and time the file."""
    engine = build("boxinst_resnet50", data, device, LARGE)
    save_model(place / "model.pt", engine.student.cpu().eval())
    rows = []
    for number, (kind, options) in enumerate(engines()):
        out = place / f"{number}.{'onnx' if kind == 'onnx' else 'engine'}"
        words = ["export", str(place / "model.pt"), "--format", kind, *options, "--out", str(out)]
        done = run([*words, "--data", str(data), "--images", "8"], 600)
        rows.append({"format": kind, "options": list(options), **done})
        if done["code"] == 0:
            timed = run(["bench", str(out), "--device", "cuda", "--iters", "100"], 300)
            rows.append({"format": kind, "options": list(options), **timed})
    return rows


def ablate(place: Path) -> dict[str, Any] | None:
    """Train the rows that fit into ten minutes; None where there is no data."""
    data = os.environ.get("BOXSEG_DATA")
    if data is None or not (Path(data) / "pennfudan" / "train.json").is_file():
        return None
    words = ["ablate", "--data", f"{data}/pennfudan", "--seed", "0", "--device", "cuda"]
    words += ["--row", "mqs", "--row", "pc", "--precision", "bf16-mixed"]
    words += ["--base-iters", "300", "--iters", "300", "--out", str(place / "ablation")]
    done = run(words, ABLATION_SECONDS)
    file = place / "ablation" / "ablation.json"
    return {**done, "rows": json.loads(file.read_text()) if file.is_file() else []}


def describe_gpu(device: str) -> dict[str, Any]:
    """Return what the numbers depend on beside the machine."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


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
        "| recipe | images | images/s | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    for row in report["throughput"]:
        height, width = row["padded_size"]
        lines.append(
            f"| {row['recipe']} | {row['images']} of {height} x {width} | "
            f"{row['images_per_second']:.1f} | {row['peak_memory_gib']:.1f} |"
        )
    for row in report["throughput"]:
        lines += ["", f"Where a step of {row['recipe']} goes, loading included:", ""]
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
            f"Ablation rows on Penn-Fudan: {len(done['rows'])} in {done['seconds']:.0f} s",
            "",
            *done["output"],
        ]
    return lines


def failed(report: Mapping[str, Any]) -> list[str]:
    """Return what went wrong."""
    wrong = [row["check"] for row in report["correctness"] if not row["passed"]]
    wrong += [f"{row['command']} {row['format']}" for row in report["export"] if row["code"]]
    return wrong


def main() -> int:
    """Check the first GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--skip-ablation", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA GPU here", file=sys.stderr)
        return 1
    device = "cuda:0"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small, large = place / "small", place / "large"
        for _ in write_scenes(small, images=8, val_images=2, seed=0):
            pass
        for _ in write_scenes(large, images=64, val_images=8, seed=0, size=(800, 1066)):
            pass
        report: dict[str, Any] = {
            "gpu": describe_gpu(device),
            "machine": describe_machine(),
            "correctness": check_correctness(small, device),
            "throughput": [measure_throughput(name, large, device) for name in THROUGHPUT],
            "export": export_and_bench(large, place, device),
            "ablation": None if given.skip_ablation else ablate(place),
        }
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

"""What the mask head of the form `graph` costs inside OpenVINO: all that follows the choice.

    python docs/graph_head.py best_openvino_model head.json --threads 1 2

The engine's own clock of each node, which it keeps as a mean over all runs, summed over the nodes
behind the TopK: gathering of parameters, head and masks.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openvino

from boxseg.runtime.backends import openvino_settings
from boxseg.runtime.benchmark import describe_machine


def behind_the_choice(graph: openvino.Model) -> dict[str, float]:
    """Return ms per kind of node behind the TopK of a model that has run.

    Args:
        graph: What the engine runs.
    """
    reached: set[str] = set()
    spent: dict[str, float] = {}
    for node in graph.get_ordered_ops():
        said = node.get_rt_info()
        kind = str(said["layerType"].astype(str))
        sources = {
            source.get_source_output().get_node().get_friendly_name() for source in node.inputs()
        }
        if kind == "TopK" or reached & sources:
            reached.add(node.get_friendly_name())
        if reached & sources:
            micros = str(said["execTimeMcs"].astype(str))
            if micros.isdigit():
                spent[kind] = spent.get(kind, 0.0) + int(micros) / 1000
    return spent


def main() -> None:
    """Measure one file with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args()
    (file,) = given.model.glob("*.xml")
    rows = []
    for threads in given.threads:
        settings = openvino_settings("fp32")
        settings |= {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        request = compiled.create_infer_request()
        image = np.random.default_rng(0).integers(0, 256, tuple(compiled.input(0).shape), np.uint8)
        for _ in range(given.runs):
            request.infer([image], share_inputs=True)
        spent = behind_the_choice(compiled.get_runtime_model())
        whole, products = sum(spent.values()), spent.get("MatMul", 0.0)
        rows.append({"threads": threads, "ms": whole, "kinds": spent})
        print(f"{threads} threads: {whole:.2f} ms, of it {products:.2f} in matrix products")
    report = {"machine": describe_machine(), "model": file.name, "runs": given.runs, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

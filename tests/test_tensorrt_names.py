"""Every name of TensorRT that the code uses exists in the versions that it is used for."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8"))
MAJORS = frozenset(API)

# What the code calls its objects, and what its calls return.
VARIABLES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
}
RESULTS = {"get_timing_cache": "ITimingCache"}


class Names(ast.NodeVisitor):
    """Collects class, attribute and majors of every use."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str, frozenset[str]]] = set()
        self.majors = MAJORS

    def visit_If(self, node: ast.If) -> None:
        """Follow `if toolkit.major == 10`."""
        if ast.unparse(node.test) != "toolkit.major == 10":
            self.generic_visit(node)
            return
        for majors, body in (({"10"}, node.body), ({"11"}, node.orelse)):
            self.majors = frozenset(majors)
            for part in body:
                self.visit(part)
        self.majors = MAJORS

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the attribute if its object is one of TensorRT's."""
        owner = ast.unparse(node.value)
        last = owner.rpartition(".")[2].removesuffix("()")
        if owner == "trt" and not node.attr.startswith("__"):
            self.found.add(("", node.attr, self.majors))
        elif owner.startswith("trt.") and owner.count(".") == 1:
            self.found.add((owner.removeprefix("trt."), node.attr, self.majors))
        elif isinstance(node.value, ast.Call) and last in RESULTS:
            self.found.add((RESULTS[last], node.attr, self.majors))
        elif last in VARIABLES and isinstance(node.value, (ast.Name, ast.Attribute)):
            self.found.add((VARIABLES[last], node.attr, self.majors))
        self.generic_visit(node)


def uses() -> set[tuple[str, str, frozenset[str]]]:
    names = Names()
    names.visit(ast.parse((ROOT / "export" / "to_tensorrt.py").read_text(encoding="utf-8")))
    backends = ast.parse((ROOT / "runtime" / "backends.py").read_text(encoding="utf-8"))
    for part in backends.body:
        if isinstance(part, ast.ClassDef) and part.name == "TensorRTBackend":
            names.visit(part)
    return names.found


def missing(owner: str, name: str, major: str) -> bool:
    lists = API[major]
    if not owner:
        return name not in {**lists["enums"], **lists["classes"]}
    if owner in lists["enums"]:
        return name not in lists["enums"][owner]
    return name.startswith("__") is False and name not in lists["classes"][owner]


def test_every_name_exists_in_its_versions() -> None:
    found = uses()
    assert len(found) > 50
    assert ("IExecutionContext", "execute_async_v3", MAJORS) in found
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", frozenset({"10"})) in found
    absent = [
        f"{owner}.{name} in TensorRT {major}"
        for owner, name, majors in sorted(found, key=lambda use: use[:2])
        for major in majors
        if missing(owner, name, major)
    ]
    assert absent == []


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", {"11"}),
        ("builder.platform_has_fast_fp16", {"11"}),
        ("self._context.execute_async_v2(handle)", {"10", "11"}),
        ("if toolkit.major == 10:\n    trt.BuilderFlag.FP16", set()),
        ("engine.num_bindings", {"10", "11"}),
    ],
)
def test_the_search_finds_names_that_are_gone(code: str, absent: set[str]) -> None:
    names = Names()
    names.visit(ast.parse(code))
    assert {
        major
        for owner, name, majors in names.found
        for major in majors
        if missing(owner, name, major)
    } == absent

"""The arrows between the packages, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("boxseg", "train", "export", "runtime", "configs")

# What each package may import beside itself.
ALLOWED = {
    "boxseg": set(),
    "runtime": set(),
    "configs": set(),
    "train": {"boxseg", "runtime", "configs"},
    "export": {"boxseg", "runtime", "configs"},
}
# Pure Python without imports of its own: names and numbers that all packages share.
SHARED = {"boxseg", "boxseg.errors"}
# The command line finds the packages by name, on use; it imports none of them.
TORCH = {"torch", "torchvision", "lightning_fabric"}


def sources(package: str) -> list[Path]:
    """Return the Python files of a package, the links inside boxseg/ left out."""
    folder = ROOT / package
    pattern = "*.py" if package == "boxseg" else "**/*.py"
    return sorted(folder.glob(pattern))


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import in a file, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield node.lineno, module
            # `from boxseg import runtime` imports a package under another spelling
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def package_of(module: str) -> str | None:
    """Return which of the packages a module belongs to, or None for foreign ones."""
    parts = module.split(".")
    if parts[0] != "boxseg":
        return None
    if len(parts) > 1 and parts[1] in PACKAGES:
        return parts[1]
    return "boxseg"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_along_the_arrows(package: str) -> None:
    wrong = []
    for path in sources(package):
        for line, module in imported_modules(path):
            target = package_of(module)
            shared = module in SHARED or module.startswith(("boxseg.errors.", "boxseg.__version__"))
            if target is None or target == package or shared or target in ALLOWED[package]:
                continue
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_runtime_never_imports_torch_not_even_lazily() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in [*sources("runtime"), ROOT / "boxseg/cli.py", ROOT / "boxseg/errors.py"]
        for line, module in imported_modules(path)
        if module.split(".")[0] in TORCH
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for package in (*PACKAGES, "tests")
        for path in sources(package)
        for line, module in imported_modules(path)
        if module.split(".")[0] in PACKAGES[1:]
    ]
    assert not wrong, "\n".join(wrong)


def test_module_names_are_unique_and_say_what_they_hold() -> None:
    seen: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sources(package):
            if path.stem in ("__init__", "commands"):
                continue
            assert path.stem not in seen, f"{path} and {seen[path.stem]} share a name"
            seen[path.stem] = path
    forbidden = {"utils", "helpers", "common", "base", "manager"}
    assert not forbidden & set(seen)


def test_imports_resolve_into_this_checkout() -> None:
    import boxseg.configs
    import boxseg.export
    import boxseg.runtime
    import boxseg.train

    for module in (boxseg.train, boxseg.export, boxseg.runtime, boxseg.configs):
        assert module.__file__ is not None
        found = Path(module.__file__).resolve()
        assert found.parent == ROOT / module.__name__.split(".")[1]

"""Build recipe: folder mapping and the native runtime; metadata lives in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

PACKAGE_DIR = {
    "boxseg": "boxseg",
    "boxseg.train": "train",
    "boxseg.export": "export",
    "boxseg.runtime": "runtime",
    "boxseg.configs": "configs",
}

native = Extension(
    "boxseg.runtime._native",
    sources=sorted(str(path) for path in Path("runtime/csrc").glob("*.c")),
    include_dirs=["runtime/include", "runtime/csrc"],
    depends=sorted(str(path) for path in Path("runtime").glob("*/*.h")),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
    py_limited_api=True,
)

setup(
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    ext_modules=[native],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

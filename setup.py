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
PACKAGE_DATA = {
    "boxseg": ["py.typed"],
    "boxseg.runtime": ["include/boxseg.h", "_native.pyi"],
    "boxseg.configs": ["*.yaml", "*/*.yaml"],
}

SOURCES = sorted(str(path) for path in Path("runtime/csrc").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("runtime").glob("*/*.h"))

native = Extension(
    "boxseg.runtime._native",
    sources=SOURCES,
    include_dirs=["runtime/include", "runtime/csrc"],
    depends=HEADERS,
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    # One rounding per operation, so that every machine computes the same boxes and masks.
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
    py_limited_api=True,
)

setup(
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    package_data=PACKAGE_DATA,
    include_package_data=False,
    ext_modules=[native] if SOURCES else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

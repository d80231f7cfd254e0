"""The few calls of NVIDIA's driver that an engine needs: memory, copies, a stream.

They go through the driver's own library, which is wherever a GPU works, so that neither torch nor
CUDA's Python packages have to be there. The device's primary context is used, as torch does.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from boxseg.errors import BackendMissingError, BoxSegError, counted

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Numbers of the driver's header.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_POINTER,),
    "cuStreamCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(_POINTER), _SIZE),
    "cuMemFree_v2": (_POINTER,),
    "cuMemHostAlloc": (ctypes.POINTER(_POINTER), _SIZE, ctypes.c_uint),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
}


class _Driver:
    """The library; every call is checked."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise BackendMissingError(f"no NVIDIA driver here: {error}") from None
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, _INT

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            BoxSegError: if the driver reports an error.
        """
        code = int(getattr(self._library, name)(*arguments))
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise BoxSegError(f"CUDA: {name} failed with {code}, {reason}")

    def integer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument takes the answer."""
        answer = _INT()
        self(name, ctypes.byref(answer), *arguments)
        return answer.value

    def pointer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument takes an address or a handle."""
        answer = _POINTER()
        self(name, ctypes.byref(answer), *arguments)
        return int(answer.value or 0)


def _release(driver: _Driver, device: int, handles: list[tuple[str, int]]) -> None:
    """Give back what a device object holds."""
    for name, handle in reversed(handles):
        driver(name, handle)
    driver("cuDevicePrimaryCtxRelease_v2", device)


class CudaDevice:
    """A GPU with one stream; its memory is given back with the object.

    Attributes:
        name: The GPU's name.
        compute_capability: Such as "8.6".
        driver_version: CUDA version that the driver supports, 1000 * major + 10 * minor.
        stream: Handle of the stream.
    """

    def __init__(self, number: int = 0) -> None:
        """Open a GPU.

        Args:
            number: As CUDA counts, from 0.

        Raises:
            BackendMissingError: if there is no driver or no such GPU.
        """
        driver = _Driver()
        try:
            driver("cuInit", 0)
            count = driver.integer("cuDeviceGetCount")
        except BoxSegError as error:
            raise BackendMissingError(f"no CUDA device here: {error}") from None
        if not 0 <= number < count:
            raise BackendMissingError(
                f"device cuda:{number} is not available: {counted(count, 'GPU')} here"
            )
        device = driver.integer("cuDeviceGet", number)
        text = ctypes.create_string_buffer(256)
        driver("cuDeviceGetName", text, len(text), device)
        self.name = text.value.decode()
        major = driver.integer("cuDeviceGetAttribute", _CAPABILITY_MAJOR, device)
        minor = driver.integer("cuDeviceGetAttribute", _CAPABILITY_MINOR, device)
        self.compute_capability = f"{major}.{minor}"
        self.driver_version = driver.integer("cuDriverGetVersion")
        self._driver = driver
        self._context = driver.pointer("cuDevicePrimaryCtxRetain", device)
        self._handles: list[tuple[str, int]] = []
        self._close = weakref.finalize(self, _release, driver, device, self._handles)
        self.activate()
        self.stream = self._keep("cuStreamDestroy_v2", "cuStreamCreate", _STREAM_NON_BLOCKING)

    def _keep(self, release: str, name: str, *arguments: Any) -> int:
        handle = self._driver.pointer(name, *arguments)
        self._handles.append((release, handle))
        return handle

    def activate(self) -> None:
        """Make this GPU the current one of the calling thread; each thread has to."""
        self._driver("cuCtxSetCurrent", self._context)

    @property
    def description(self) -> str:
        """Name, compute capability and driver, for people."""
        cuda = f"{self.driver_version // 1000}.{self.driver_version % 1000 // 10}"
        return f"{self.name} ({self.compute_capability}, driver of CUDA {cuda})"

    def taken_bytes(self) -> int:
        """Return how much of the GPU's memory is taken, by this process and all others."""
        self.activate()
        free, total = _SIZE(), _SIZE()
        self._driver("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new memory on the GPU."""
        return self._keep("cuMemFree_v2", "cuMemAlloc_v2", max(size_bytes, 1))

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in memory that the GPU copies from and to without help of the CPU."""
        kind = np.dtype(dtype)
        size_bytes = max(int(np.prod(shape)) * kind.itemsize, 1)
        address = self._keep("cuMemFreeHost", "cuMemHostAlloc", size_bytes, 0)
        room = (ctypes.c_uint8 * size_bytes).from_address(address)
        values: NDArray[Any] = np.ndarray(shape, kind, np.ctypeslib.as_array(room))
        return values

    def upload(self, values: NDArray[Any], address: int) -> None:
        """Copy a contiguous pinned array to the GPU, in the stream's order."""
        self._driver(
            "cuMemcpyHtoDAsync_v2", address, values.ctypes.data, values.nbytes, self.stream
        )

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Copy from the GPU to a contiguous pinned array, in the stream's order."""
        self._driver(
            "cuMemcpyDtoHAsync_v2", values.ctypes.data, address, values.nbytes, self.stream
        )

    def wait(self) -> None:
        """Wait until the stream has done its work."""
        self._driver("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give everything back; arrays and addresses are no longer valid."""
        self._close()

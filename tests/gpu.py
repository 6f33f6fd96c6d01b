"""A GPU that is none: what numformer_cuda uses of CuPy, over memory of the host, and a driver.

So that all Python of the CUDA backend runs without one. Arrays refuse to be taken for NumPy's, as CuPy's do; new memory
is full of NaN; and whatever waits or copies is counted.

With NUMFORMER_TEST_GPU set there is nothing of that: the tests that put arrays on the device by `put` run on a true
one, with numformer-cuda as it is installed, and what is counted is not asked about.
"""

import contextlib
import ctypes
import importlib
import importlib.machinery
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
from numformer.ops import dispatch
from numformer.profiling import ranges

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cuda"
STREAM = 0x5EED
TRUE = bool(os.environ.get("NUMFORMER_TEST_GPU"))


class CUDARuntimeError(RuntimeError):
    """CuPy's name for an error of the CUDA runtime."""


class OutOfMemoryError(MemoryError):
    """CuPy's name for memory that does not suffice."""


class Uncounted:
    """Counts of a true device: they are whatever one expects."""

    def __getitem__(self, name):
        return mock.ANY

    def __eq__(self, other):
        return True

    __hash__ = None

    def __iter__(self):
        return iter(())

    def clear(self):
        pass


class Gpu:
    """What happened on the device, and what is to happen."""

    def __init__(self):
        self.counts = Uncounted() if TRUE else Counter()
        self.limit = None  # bytes of the next array, beyond which there is no memory
        self.left = None  # so many more arrays there is memory for
        self.marks = []  # ranges of NVTX
        self.clock = 0.0  # milliseconds of events
        self.twin = True
        self.device = 0  # the one in use
        self.failed = False  # an error that the next synchronisation reports

    def take(self, count):
        if self.left is not None:
            self.left -= 1
        if (self.limit is not None and count > self.limit) or self.left == -1:
            raise OutOfMemoryError(f"Out of memory allocating {count} bytes")

    def wait(self, what):
        self.counts[what] += 1
        if self.failed:
            self.failed = False
            raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")


GPU = Gpu()


def _host(x):
    if isinstance(x, ndarray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return x


def _key(key):
    return tuple(map(_host, key)) if isinstance(key, tuple) else _host(key)


def _operator(name):
    def method(self, *others):
        return ndarray(np.asarray(getattr(self.host, name)(*map(_host, others))))

    return method


class ndarray:
    """An array "on the device"."""

    __array_ufunc__ = None

    def __init__(self, host):
        self.host = host

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: ndarray(self.host.T))

    @property
    def flags(self):
        return SimpleNamespace(c_contiguous=self.host.flags.c_contiguous)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.host.ctypes.data if self.host.size else 0)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, max_version=None):
        return self.host.__dlpack__() if stream == -1 else Token(self.host, stream)  # -1: as mpi4py asks

    def __len__(self):
        return len(self.host)

    def __getitem__(self, key):
        found = self.host[_key(key)]
        return ndarray(found if isinstance(found, np.ndarray) else np.asarray(found))

    def __setitem__(self, key, value):
        self.host[_key(key)] = _host(value)

    def __iadd__(self, other):
        self.host += _host(other)
        return self

    def __isub__(self, other):
        self.host -= _host(other)
        return self

    def __imul__(self, other):
        self.host *= _host(other)
        return self

    def reshape(self, *shape):
        return ndarray(self.host.reshape(*shape))

    def view(self, dtype):
        return ndarray(self.host.view(dtype))

    def swapaxes(self, a, b):
        return ndarray(self.host.swapaxes(a, b))

    def transpose(self, *axes):
        return ndarray(self.host.transpose(*axes))

    def sum(self, axis=None):
        return ndarray(np.asarray(self.host.sum(axis=axis)))

    def fill(self, value):
        self.host.fill(value)

    def astype(self, dtype, copy=True):
        if not copy and self.host.dtype == dtype:
            return self
        GPU.counts["copy"] += 1
        return ndarray(self.host.astype(dtype))

    def copy(self):
        GPU.counts["copy"] += 1
        return ndarray(self.host.copy())

    def get(self):
        GPU.wait("to_host")
        return self.host.copy()

    def __float__(self):
        GPU.wait("to_host")
        return float(self.host)

    def __bool__(self):
        GPU.wait("to_host")
        return bool(self.host)

    for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "eq", "ne", "lt", "ge", "neg"):
        locals()[f"__{_name}__"] = _operator(f"__{_name}__")
    __hash__ = None


class Stream:
    """A stream of CUDA. What is launched on the current one is over at once, what NCCL does on another is `pending`."""

    def __init__(self, ptr=None, non_blocking=False):
        self.ptr = len(STREAMS) + 1 if ptr is None else ptr
        self.pending = []
        STREAMS[self.ptr] = self

    def synchronize(self):
        GPU.wait("synchronize")

    def wait_event(self, event):
        for request in event.pending:
            request.Wait()
        event.pending = []


STREAMS = {}
CURRENT = Stream(STREAM)


class Event:
    """An event of CUDA: one second after the other."""

    def __init__(self, disable_timing=False):
        self.pending = []

    def record(self, stream=CURRENT):
        GPU.clock += 1000.0
        self.time = GPU.clock
        self.pending, stream.pending = stream.pending, []

    def synchronize(self):
        GPU.wait("event")


class Device:
    """A device by its number, or the one in use."""

    def __init__(self, number=None):
        self.id = GPU.device if number is None else number

    def use(self):
        GPU.device = self.id


class Token:
    """What a capsule of DLPack stands for."""

    def __init__(self, host, stream):
        self.host, self.stream = host, stream


class Foreign:
    """An array of another library, on the device; it notes for which stream it was asked."""

    def __init__(self, host, device=2):
        self.host, self.device, self.streams = host, device, []

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        return Token(self.host, stream)


def empty(shape, dtype=np.float64):
    host = np.empty(shape, dtype)
    GPU.take(host.nbytes)
    if host.size:
        host.reshape(-1).view(np.uint8)[...] = 0xFF  # NaN
    return ndarray(host)


def asarray(x, dtype=None):
    if isinstance(x, ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    GPU.counts["to_device"] += 1
    GPU.take(np.asarray(x).nbytes)
    return ndarray(np.array(x, dtype))


def ascontiguousarray(x):
    assert isinstance(x, ndarray)
    return x if x.host.flags.c_contiguous else x.copy()


def from_dlpack(x):
    assert x.__dlpack_device__()[0] in (2, 13)
    return ndarray(x.__dlpack__(stream=STREAM).host)


def alloc(count):
    GPU.take(count)
    memory = np.full(count + 256, 0xFF, np.uint8)
    return SimpleNamespace(ptr=-(-memory.ctypes.data // 256) * 256, memory=memory)


def cupy():
    """The module."""
    module = ModuleType("cupy")
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    module.__dict__.update(
        ndarray=ndarray,
        empty=empty,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        from_dlpack=from_dlpack,
        empty_like=lambda x: empty(x.shape, x.dtype),
        zeros=lambda shape, dtype=np.float64: ndarray(np.zeros(shape, dtype)),
        full=lambda shape, value, dtype=None: ndarray(np.full(shape, value, dtype)),
        broadcast_to=lambda x, shape: ndarray(np.broadcast_to(_host(x), shape)),
        moveaxis=lambda x, source, target: ndarray(np.moveaxis(_host(x), source, target)),
        split=lambda x, parts: [ndarray(part) for part in np.split(_host(x), parts)],
        take=lambda x, rows, axis: ndarray(np.take(_host(x), _host(rows), axis=axis)),
        concatenate=lambda arrays, axis=0: ndarray(np.concatenate(list(map(_host, arrays)), axis=axis)),
        tanh=lambda x: ndarray(np.asarray(np.tanh(_host(x)))),
        exp=lambda x: ndarray(np.asarray(np.exp(_host(x)))),
        logaddexp=lambda x, y: ndarray(np.asarray(np.logaddexp(_host(x), _host(y)))),
        stack=lambda arrays, axis: ndarray(np.stack(list(map(_host, arrays)), axis=axis)),
        where=lambda condition, x, y: ndarray(np.where(*map(_host, (condition, x, y)))),
        cuda=SimpleNamespace(
            alloc=alloc,
            get_current_stream=lambda: CURRENT,
            Stream=Stream,
            Device=Device,
            runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
            Event=Event,
            get_elapsed_time=lambda start, stop: stop.time - start.time,
            nvtx=SimpleNamespace(
                available=True,
                RangePush=lambda label: GPU.marks.append(label),
                RangePop=lambda: GPU.marks.append("/"),
            ),
        ),
    )
    return module


class Driver:
    """What the library of the driver would say."""

    def __init__(self, version=13000, devices=1, name=b"Stand-in", capability=(9, 0), init=0):
        self.version, self.devices, self.name, self.capability, self.init = version, devices, name, capability, init

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0 if number < self.devices else 101

    def cuDeviceGetName(self, name, length, device):
        name.value = self.name
        return 0

    def cuDeviceGetUuid_v2(self, uuid, device):
        uuid[:] = [0xD0 + device.value] * 16
        return 0

    def cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = self.capability[which - 75]
        return 0


@contextlib.contextmanager
def standing_in(core, **driver):
    """Have numformer_cuda, CuPy, a driver and the native module, whichever there are in truth."""
    if TRUE:
        yield GPU
        return

    def ours(name):
        return name.split(".")[0] in ("cupy", "numformer_cuda")

    before = {name: module for name, module in sys.modules.items() if ours(name)}
    loaded, path = dict(dispatch._loaded), list(sys.path)
    for name in before:
        del sys.modules[name]
    dispatch._loaded.clear()
    sys.path.insert(0, str(PACKAGE))
    sys.modules["cupy"] = cupy()
    sys.modules["cupy.cuda.nccl"] = SimpleNamespace(available=False)
    if core is not None:
        sys.modules["numformer_cuda._core"] = core
    GPU.__init__()
    try:
        module = importlib.import_module("numformer_cuda.driver")
        module.library = lambda: Driver(**driver)
        yield GPU
    finally:
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path
        dispatch._loaded.clear()
        dispatch._loaded.update(loaded)
        ranges._device = None
        importlib.invalidate_caches()


def put(x):
    """Arrays, and arrays in lists, tuples and dicts, on the device; other things as they are."""
    if isinstance(x, np.ndarray):
        return importlib.import_module("cupy").array(x) if TRUE else ndarray(np.array(x))
    if isinstance(x, (list, tuple)):
        return type(x)(put(item) for item in x)
    return {key: put(value) for key, value in x.items()} if isinstance(x, dict) else x


def as_it_lies(x):
    """An array on the device, with the strides that it has on the host."""
    if not TRUE:
        return ndarray(x)
    cupy = importlib.import_module("cupy")
    low, high = np.lib.array_utils.byte_bounds(x)
    memory = cupy.array(np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8))
    return cupy.ndarray(x.shape, x.dtype, memory.data + (x.ctypes.data - low), x.strides)


def got(x):
    """The same back; nothing is counted."""
    if isinstance(x, ndarray):
        return x.host
    if TRUE and isinstance(x, importlib.import_module("cupy").ndarray):
        return x.get()
    if isinstance(x, (list, tuple)):
        return type(x)(got(item) for item in x)
    return {key: got(value) for key, value in x.items()} if isinstance(x, dict) else x

"""Arrays of other libraries through DLPack: without a copy, and with nothing believed that was not checked."""

import datetime
import gc
import threading

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, layouts, name, normal, same
from capsules import IS_COPIED, Old, Producer, address, flags_of, name_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MORE = [np.dtype(d) for d in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16")]


@pytest.mark.parametrize("dtype", [*DTYPES, *MORE], ids=name)
@pytest.mark.parametrize("kind", [Producer, Old])
def test_reads_without_a_copy(rng, dtype, kind):
    a = normal(rng, 3, 4, 5).astype(dtype)
    producer = kind(a)
    b = nf.from_dlpack(producer)
    assert same(b, a) and address(b) == address(a)
    assert b.flags.writeable is (kind is Producer), "before version 1 nobody can say that it may be written"
    view = b[1:, ::2]
    del b
    gc.collect()
    assert producer.deleted == 0, "a view keeps the memory"
    del view
    gc.collect()
    assert producer.deleted == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_any_strides(rng, dtype):
    a = normal(rng, 6, 8, dtype=dtype)
    for what, x in layouts(a):
        if what != "misaligned" or dtype.itemsize == 1:
            assert same(nf.from_dlpack(Producer(x)), a), what
    broadcast = np.broadcast_to(a[0], (3, 8))
    assert same(nf.from_dlpack(Producer(broadcast)), broadcast)
    assert same(nf.from_dlpack(Producer(a, strides=None)), a), "no strides: C order"
    assert same(nf.from_dlpack(Producer(a, byte_offset=8 * dtype.itemsize, shape=[5, 8])), a[1:])
    assert nf.from_dlpack(Producer(a[:0])).shape == (0, 8)
    assert nf.from_dlpack(Producer(a[:0], data=0)).shape == (0, 8)
    assert nf.from_dlpack(Producer(a[0, 0, ...])).shape == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_operations_take_them(rng, dtype):
    q, k, v = (normal(rng, 2, 5, 8, dtype=dtype) for _ in range(3))
    assert same(nf.attention(Producer(q), Old(k), Producer(v)), nf.attention(q, k, v))
    assert same(nf.matmul(Producer(q), Producer(k.swapaxes(1, 2))), nf.matmul(q, k.swapaxes(1, 2)))
    dy = normal(rng, 2, 5, 5, dtype=dtype)
    wants = nf.matmul_backward(dy, q, k.swapaxes(1, 2))
    assert same(nf.matmul_backward(Producer(dy), Producer(q), Producer(k.swapaxes(1, 2))), wants)
    ids = rng.integers(0, 5, 7)
    assert same(nf.embedding(Producer(q[0]), Producer(ids)), nf.embedding(q[0], ids))
    cache = nf.KVCache()
    keys, values = cache.append(Producer(k), Producer(v))
    assert same(keys, k) and same(values, v)
    weights = [q.astype(np.float32).copy() for _ in range(2)]
    nf.sgd_update([weights[0]], [Producer(k.astype(np.float32))], None, lr=0.5)
    nf.sgd_update([weights[1]], [k.astype(np.float32)], None, lr=0.5)
    assert same(*weights)
    producer = Producer(q)
    nf.softmax(producer)
    gc.collect()
    assert producer.deleted == 1


def test_array_interface(rng):
    """What has only `__array__`."""

    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    x = normal(rng, 4, 8)
    assert same(nf.softmax(Wrapped(x)), nf.softmax(x))


@pytest.mark.parametrize("dtype", [*DTYPES, *MORE], ids=name)
def test_there_and_back(rng, dtype):
    a = normal(rng, 3, 4, 5).astype(dtype)
    for x in (a, a[:, ::-1, ::2], a.T, a[:0], a[0, 0, 0, ...]):
        b = nf.from_dlpack(nf.to_dlpack(x))
        assert same(b, x) and (not x.size or address(b) == address(x))
    if dtype.name != "bfloat16":
        assert same(np.from_dlpack(nf.to_dlpack(a)), a)
        assert address(np.from_dlpack(nf.to_dlpack(a))) == address(a)
    assert nf.from_dlpack(a) is not a and address(nf.from_dlpack(a)) == address(a)


def test_giving(rng):
    a = normal(rng, 4, 4, dtype=ml_dtypes.bfloat16)
    exchange = nf.to_dlpack(a)
    assert exchange.__dlpack_device__() == (1, 0)
    for options, kind in (({}, b"dltensor"), ({"max_version": (0, 8)}, b"dltensor")):
        assert name_of(exchange.__dlpack__(**options)) == kind
    capsule = exchange.__dlpack__(max_version=(1, 1))
    assert name_of(capsule) == b"dltensor_versioned"
    b = nf.from_dlpack(capsule)
    assert name_of(capsule) == b"used_dltensor_versioned"
    with pytest.raises(ValueError, match="used already"):
        nf.from_dlpack(capsule)
    b[0, 0] = 7
    assert a[0, 0] == 7
    for copy in (True, False, None):  # which the flags say: whoever gets a copy may keep it
        capsule = exchange.__dlpack__(max_version=(1, 0), copy=copy)
        assert flags_of(capsule) == (IS_COPIED if copy else 0)
    copied = nf.from_dlpack(exchange.__dlpack__(max_version=(1, 0), copy=True))
    copied[0, 0] = 8
    assert a[0, 0] == 7
    a.flags.writeable = False
    assert not nf.from_dlpack(exchange).flags.writeable
    read_only = "to_dlpack: a is read-only, which DLPack before version 1 cannot say; give a copy of it"
    with pytest.raises(BufferError, match=f"^{read_only}$"):
        exchange.__dlpack__()
    assert name_of(exchange.__dlpack__(copy=True)) == b"dltensor"
    assert name_of(exchange.__dlpack__(max_version=(1, 0), dl_device=(1, 0))) == b"dltensor_versioned"
    with pytest.raises(BufferError, match="dl_device"):
        exchange.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        exchange.__dlpack__(stream=1)
    for wrong, kind in (([1.0], TypeError), (np.array(["a"]), TypeError), (np.array([None]), TypeError)):
        with pytest.raises(kind, match="to_dlpack: a must"):
            nf.to_dlpack(wrong)
    with pytest.raises(TypeError, match=r"^to_dlpack: a must be a numpy\.ndarray, got list$"):
        nf.to_dlpack([1.0])
    with pytest.raises(TypeError, match="to_dlpack: a must have a dtype"):
        nf.to_dlpack(np.zeros(3, ">f4"))
    records = np.zeros(3, [("x", "f4"), ("y", "i1")])
    with pytest.raises(ValueError, match="whole elements"):
        nf.to_dlpack(records["x"])


def test_memory_lives_as_long_as_its_last_view(rng):
    """Also where a thread of the other library lets go."""
    a = nf.relu(np.ones((300, 300), np.float32))
    held = nf.info()["pool"]["bytes_in_use"]
    b = nf.from_dlpack(nf.to_dlpack(a))
    del a
    gc.collect()
    assert nf.info()["pool"]["bytes_in_use"] == held and (b == 1).all()
    box = [b]
    del b
    worker = threading.Thread(target=box.clear)
    worker.start()
    worker.join()
    gc.collect()
    assert nf.info()["pool"]["bytes_in_use"] < held
    before = nf.info()["pool"]["bytes_in_use"]
    for _ in range(20):  # capsules that nobody takes
        nf.to_dlpack(nf.relu(np.ones((300, 300), np.float32))).__dlpack__()
    gc.collect()
    assert nf.info()["pool"]["bytes_in_use"] == before


X = np.arange(24, dtype=np.float32).reshape(4, 6)
BIG = 2**62
HOSTILE = [
    ({"device": (2, 1)}, ValueError, "CUDA (type 2, number 1)"),
    ({"device": (99, 0)}, ValueError, "unknown kind of device"),
    ({"device": (-1, 0)}, ValueError, "unknown kind of device"),
    ({"device": 1}, TypeError, "__dlpack_device__"),
    ({"device": ("cpu", 0)}, TypeError, "__dlpack_device__"),
    ({"device_type": 10}, ValueError, "ROCm"),
    ({"major": 2}, ValueError, "DLPack 2.0"),
    ({"major": 0}, ValueError, "DLPack 0.0"),
    ({"ndim": -1}, ValueError, "axes, got -1"),
    ({"ndim": 2**31 - 1}, ValueError, "at most 32 axes"),
    ({"shape": None}, ValueError, "no shape"),
    ({"shape": [4, -6]}, ValueError, "negative size, -6"),
    ({"shape": [BIG, BIG]}, ValueError, "more elements"),
    ({"shape": [2**40, 2**40]}, ValueError, "more elements"),
    ({"shape": [0, BIG]}, ValueError, "more elements"),
    ({"strides": [BIG, 1]}, ValueError, "strides"),
    ({"strides": [-BIG, 1]}, ValueError, "strides"),
    ({"strides": [2**55, 2**55]}, ValueError, "strides"),
    ({"shape": [2**50, 6], "strides": [2**40, 1]}, ValueError, "strides"),
    ({"data": 0}, ValueError, "without data"),
    ({"byte_offset": 2**64 - 1}, ValueError, "offset"),
    ({"data": 2**64 - 16}, ValueError, "offset"),
    ({"data": 64, "strides": [-100, 1]}, ValueError, "offset"),
    ({"bits": 4}, TypeError, "4 bits"),
    ({"bits": 0}, TypeError, "0 bits"),
    ({"lanes": 4}, TypeError, "4 lanes"),
    ({"lanes": 0}, TypeError, "0 lanes"),
    ({"code": 3}, TypeError, "code 3"),
    ({"code": 17, "bits": 8}, TypeError, "code 17"),
    ({"code": 2, "bits": 8}, TypeError, "8 bits"),
    ({"code": 2, "bits": 128}, TypeError, "128 bits"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("versioned", [True, False])
def test_hostile_capsules(number, versioned):
    changes, kind, words = HOSTILE[number]
    if "major" in changes and not versioned:
        pytest.skip("has no version")
    producer = Producer(X, versioned=versioned, **changes)
    with pytest.raises(kind) as caught:
        nf.softmax(producer)
    assert str(caught.value).startswith("softmax: x ") and words in str(caught.value), str(caught.value)
    assert producer.deleted == 0, "a capsule that is refused stays its maker's"


class Raises:
    def __init__(self, error):
        self.error = error

    def __dlpack__(self, **options):
        raise self.error


def test_what_raises():
    with pytest.raises(ValueError, match=r"softmax: x cannot be taken by DLPack \(no export\)") as caught:
        nf.softmax(Raises(BufferError("no export")))
    assert isinstance(caught.value.__cause__, BufferError)
    for error in (KeyboardInterrupt, MemoryError):
        with pytest.raises(error):
            nf.softmax(Raises(error()))
    with pytest.raises(TypeError, match="softmax: x must give a capsule of DLPack, got int"):
        nf.softmax(type("Liar", (), {"__dlpack__": lambda self, **options: 3})())
    with pytest.raises(TypeError, match="from_dlpack: x must have __dlpack__ or be a capsule, got list"):
        nf.from_dlpack([1.0])
    with pytest.raises(TypeError, match="from_dlpack: x must give a capsule"):
        nf.from_dlpack(datetime.datetime_CAPI)


NUMBERS = st.one_of(
    st.integers(-3, 7),
    st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**62), -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "ndim": st.integers(-(2**31), 3),
            "code": st.integers(0, 255),
            "bits": st.integers(0, 255),
            "lanes": st.integers(0, 65535),
            "shape": st.lists(NUMBERS, min_size=3, max_size=3),
            "strides": st.none() | st.lists(NUMBERS, min_size=3, max_size=3),
            "byte_offset": st.integers(0, 2**64 - 1),
            "device_type": st.integers(-(2**31), 2**31 - 1),
            "data": st.integers(0, 2**64 - 1),
        },
    ),
    st.booleans(),
)
def test_random_capsules(changes, versioned):
    """An array that NumPy can describe, or an error; nothing is read and nothing lost."""
    producer = Producer(X, versioned=versioned, **changes)
    try:
        array = nf.from_dlpack(producer)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("from_dlpack: x ") and producer.deleted == 0  # noqa: PT017
    else:
        assert array.size >= 0 and array.ndim <= 3
        del array
        gc.collect()
        assert producer.deleted == 1

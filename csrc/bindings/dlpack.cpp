// Taking arrays of other libraries. A capsule comes from code that is not ours: it may be used already, lie about its
// sizes, or point to another device's memory. That a pointer leads where it says is all that is taken on trust.
#include "bindings/dlpack.hpp"

#include "bindings/scalars.hpp"

#include <pybind11/critical_section.h>

#include <cstring>
#include <vector>

namespace nf::bindings::dlpack {
namespace {

constexpr int kMaxAxes = 32;                        // what every NumPy allows
constexpr int64_t kMaxElements = int64_t(1) << 56;  // times any item size: fits in 63 bits
constexpr int64_t kAddressSpace = int64_t(1) << 57; // of the processors we have kernels for

// Where the mistake would be, and how it is said.
struct Caller {
    const char *operation, *argument;
    [[noreturn]] void value(const std::string &message) const {
        fail_value(operation, std::string(argument) + " " + message);
    }
    [[noreturn]] void type(const std::string &message) const {
        fail_type(operation, std::string(argument) + " " + message);
    }
};

const char *device_name(int64_t type) {
    constexpr const char *kNames[] = {
        nullptr,  "CPU",    nullptr,   nullptr, "OpenCL", nullptr, nullptr,
        "Vulkan", "Metal",  "VPI",     "ROCm",  nullptr,  nullptr, "CUDA's managed memory",
        "oneAPI", "WebGPU", "Hexagon", "MAIA"};
    if (type == 2)
        return "CUDA";
    const char *name = type >= 0 && type < int64_t(sizeof(kNames) / sizeof(*kNames)) ? kNames[type] : nullptr;
    return name ? name : "an unknown kind of device";
}

void require_processor(const Caller &caller, int64_t type, int64_t id) {
    if (type != kCpu && type != kCudaHost && type != kRocmHost)
        caller.value("must be in the processor's memory, got an array on " + std::string(device_name(type)) +
                     " (type " + std::to_string(type) + ", number " + std::to_string(id) +
                     "); copy it to the CPU first");
}

py::dtype element_type(const Caller &caller, const ElementType &type) {
    const int bits = type.bits;
    if (type.lanes == 1) {
        if (type.code == kBfloat && bits == 16)
            return dtype_of(DType::bf16);
        if (type.code == kBool && bits == 8)
            return dtype_of(DType::boolean);
        const bool whole = bits == 8 || bits == 16 || bits == 32 || bits == 64;
        const char *kind = nullptr;
        if (type.code == kInt && whole)
            kind = "i";
        else if (type.code == kUnsigned && whole)
            kind = "u";
        else if (type.code == kFloat && whole && bits > 8)
            kind = "f";
        else if (type.code == kComplex && (bits == 64 || bits == 128))
            kind = "c";
        if (kind)
            return py::dtype(kind + std::to_string(bits / 8));
    }
    caller.type("has a dtype of DLPack that NumPy lacks: code " + std::to_string(type.code) + ", " +
                std::to_string(bits) + " bits, " + std::to_string(type.lanes) + " lanes");
}

// Shape and strides in bytes, checked: all elements lie within the address space.
struct Extent {
    std::vector<py::ssize_t> shape, strides;
    bool empty = false;
};

Extent extent_of(const Caller &caller, const Tensor &tensor, int64_t item) {
    if (tensor.ndim < 0 || tensor.ndim > kMaxAxes)
        caller.value("must have at most " + std::to_string(kMaxAxes) + " axes, got " + std::to_string(tensor.ndim));
    const size_t axes = static_cast<size_t>(tensor.ndim);
    if (axes > 0 && !tensor.shape)
        caller.value("comes from a capsule that has no shape");
    Extent extent;
    int64_t elements = 1;
    for (size_t axis = 0; axis < axes; ++axis) {
        const int64_t size = tensor.shape[axis];
        if (size < 0)
            caller.value("comes from a capsule with a negative size, " + std::to_string(size));
        extent.empty = extent.empty || size == 0;
        if (__builtin_mul_overflow(elements, size > 0 ? size : 1, &elements) || elements > kMaxElements)
            caller.value("comes from a capsule with more elements than memory can hold");
        extent.shape.push_back(size);
    }
    extent.strides.resize(axes);
    int64_t compact = item, below = 0, above = item;
    for (size_t axis = axes; axis-- > 0;) {
        const int64_t size = extent.shape[axis];
        int64_t stride = compact;
        if (tensor.strides && !extent.empty && size > 1) {
            int64_t reach = 0;
            bool beyond = __builtin_mul_overflow(tensor.strides[axis], item, &stride);
            beyond = beyond || __builtin_mul_overflow(stride, size - 1, &reach);
            int64_t &side = reach < 0 ? below : above;
            beyond = beyond || __builtin_add_overflow(side, reach, &side);
            if (beyond || below < -kAddressSpace || above > kAddressSpace)
                caller.value("comes from a capsule whose strides lead out of memory");
        }
        extent.strides[axis] = stride;
        compact *= size > 0 ? size : 1;
    }
    if (!tensor.strides)
        above = compact;
    if (extent.empty)
        return extent;
    if (!tensor.data)
        caller.value("comes from a capsule without data");
    const uint64_t address = reinterpret_cast<uintptr_t>(tensor.data);
    const uint64_t limit = uint64_t(1) << 63;
    if (tensor.byte_offset > uint64_t(kAddressSpace) || address > limit || above > kAddressSpace ||
        address + tensor.byte_offset < static_cast<uint64_t>(-below))
        caller.value("comes from a capsule whose offset leads out of memory");
    return extent;
}

// The last reference to the memory is gone: its owner is told.
template <class Kind> void let_go(PyObject *capsule) {
    PyObject *type, *value, *trace; // a destructor may run while an error is on its way
    PyErr_Fetch(&type, &value, &trace);
    Kind *managed = static_cast<Kind *>(PyCapsule_GetPointer(capsule, nullptr));
    if (managed && managed->deleter)
        managed->deleter(managed);
    PyErr_Restore(type, value, trace);
}

// Takes a capsule that nobody has taken, by its name, before anything in it is read: of several threads that hold it
// one gets it, with the GIL and without. Unless it is kept, it is its maker's again.
template <class Kind> class Claim {
  public:
    explicit Claim(py::handle capsule) : capsule_(capsule) {
        py::scoped_critical_section one_thread(capsule); // no Python code runs in here, which could let another in
        if (!PyCapsule_IsValid(capsule.ptr(), Names<Kind>::fresh))
            return;
        managed_ = static_cast<Kind *>(PyCapsule_GetPointer(capsule.ptr(), Names<Kind>::fresh));
        if (PyCapsule_SetName(capsule.ptr(), Names<Kind>::used) != 0)
            throw py::error_already_set();
    }
    ~Claim() {
        if (managed_)
            PyCapsule_SetName(capsule_.ptr(), Names<Kind>::fresh);
    }
    Claim(const Claim &) = delete;
    Claim &operator=(const Claim &) = delete;
    Kind *managed() const { return managed_; } // null where there was nothing to take
    void keep() { managed_ = nullptr; }

  private:
    py::handle capsule_;
    Kind *managed_ = nullptr;
};

template <class Kind> py::array take(const Caller &caller, Claim<Kind> &claim, bool read_only) {
    Kind *managed = claim.managed();
    const Tensor &tensor = managed->tensor;
    require_processor(caller, tensor.device.type, tensor.device.id);
    const py::dtype dtype = element_type(caller, tensor.dtype);
    const Extent extent = extent_of(caller, tensor, dtype.itemsize());
    py::object owner = py::reinterpret_steal<py::object>(PyCapsule_New(managed, nullptr, &let_go<Kind>));
    if (!owner)
        throw py::error_already_set();
    claim.keep();
    if (extent.empty)
        return py::array(dtype, extent.shape);
    py::array array(dtype, extent.shape, extent.strides, static_cast<char *>(tensor.data) + tensor.byte_offset, owner);
    if (read_only)
        array.attr("setflags")(py::arg("write") = false);
    return array;
}

// What __dlpack__ raises, said of the argument: the cause stays attached.
[[noreturn]] void rethrow(const Caller &caller, py::error_already_set &error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError))
        throw;
    const std::string message = std::string(caller.operation) + ": " + caller.argument +
                                " cannot be taken by DLPack (" + py::cast<std::string>(py::str(error.value())) + ")";
    py::raise_from(error, PyExc_ValueError, message.c_str());
    throw py::error_already_set();
}

void check_device(const Caller &caller, py::handle object) {
    const py::object device = object.attr("__dlpack_device__")();
    const bool is_pair = py::isinstance<py::tuple>(device) && py::len(device) == 2;
    const py::tuple pair = is_pair ? py::reinterpret_borrow<py::tuple>(device) : py::tuple(2);
    if (!is_pair || !PyIndex_Check(py::object(pair[0]).ptr()) || !PyIndex_Check(py::object(pair[1]).ptr()))
        caller.type("has a __dlpack_device__ that returns no pair of integers");
    require_processor(caller, integer(caller.operation, caller.argument, py::object(pair[0])),
                      integer(caller.operation, caller.argument, py::object(pair[1])));
}

} // namespace

py::array read_capsule(const char *operation, const char *argument, py::handle capsule) {
    const Caller caller{operation, argument};
    if (Claim<ManagedVersioned> claim(capsule); claim.managed()) {
        const ManagedVersioned &managed = *claim.managed();
        if (managed.version.major != 1) // what follows the version may look different
            caller.value("comes from a capsule of DLPack " + std::to_string(managed.version.major) + "." +
                         std::to_string(managed.version.minor) + ", and 1.x is understood");
        return take(caller, claim, (managed.flags & kReadOnly) != 0);
    }
    if (Claim<Managed> claim(capsule); claim.managed())
        return take(caller, claim, true); // it cannot say that it may be written
    if (PyCapsule_IsValid(capsule.ptr(), Names<Managed>::used) ||
        PyCapsule_IsValid(capsule.ptr(), Names<ManagedVersioned>::used))
        caller.value("comes from a capsule that was used already");
    caller.type("must give a capsule of DLPack, got " + type_name(capsule));
}

py::array read(const char *operation, const char *argument, py::handle object) {
    const Caller caller{operation, argument};
    py::object capsule;
    try {
        if (py::hasattr(object, "__dlpack_device__")) // before its owner waits for a device or copies
            check_device(caller, object);
        const py::object method = object.attr("__dlpack__");
        try {
            capsule = method(py::arg("max_version") = py::make_tuple(1, 0));
        } catch (py::error_already_set &error) {
            if (!error.matches(PyExc_TypeError))
                throw;
            capsule = method(); // from before version 1
        }
    } catch (py::error_already_set &error) {
        rethrow(caller, error);
    }
    return read_capsule(operation, argument, capsule);
}

} // namespace nf::bindings::dlpack

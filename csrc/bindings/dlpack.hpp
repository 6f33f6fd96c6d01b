// DLPack, the structures by which libraries hand each other their arrays without a copy. Version 1.0 of
// https://dmlc.github.io/dlpack/latest/c_api.html; the layouts are the protocol's, the names are ours.
#pragma once
#include "bindings/arrays.hpp"

#include <cstdint>

namespace nf::bindings::dlpack {

struct Device {
    int32_t type, id;
};
constexpr int32_t kCpu = 1, kCudaHost = 3, kRocmHost = 11; // the last two: pinned, but the processor's memory

struct ElementType {
    uint8_t code, bits;
    uint16_t lanes;
};
enum Code : uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Tensor {
    void *data;
    Device device;
    int32_t ndim;
    ElementType dtype;
    int64_t *shape;
    int64_t *strides; // in elements; null: C order
    uint64_t byte_offset;
};

// What a capsule "dltensor" holds: before version 1.
struct Managed {
    Tensor tensor;
    void *context;
    void (*deleter)(Managed *self);
};

// What a capsule "dltensor_versioned" holds.
struct Version {
    uint32_t major, minor;
};
struct ManagedVersioned {
    Version version;
    void *context;
    void (*deleter)(ManagedVersioned *self);
    uint64_t flags;
    Tensor tensor;
};
constexpr uint64_t kReadOnly = 1, kIsCopied = 2;

template <class Kind> struct Names;
template <> struct Names<Managed> {
    static constexpr const char *fresh = "dltensor", *used = "used_dltensor";
};
template <> struct Names<ManagedVersioned> {
    static constexpr const char *fresh = "dltensor_versioned", *used = "used_dltensor_versioned";
};

// An array over the memory of an object that has __dlpack__, or of a capsule; it keeps that memory alive. Nothing that
// the capsule says is believed before it is checked. ValueError for other devices and what cannot be, TypeError for
// what is no capsule and for dtypes that NumPy lacks.
py::array read(const char *operation, const char *argument, py::handle object);
py::array read_capsule(const char *operation, const char *argument, py::handle capsule);

} // namespace nf::bindings::dlpack

namespace nf::bindings {

void bind_dlpack(py::module_ &m);

} // namespace nf::bindings

// Where tensors lie and how: what the optimizer asks of every parameter and gradient at every step.
// Torch answers through the exchange table that DLPack specifies, at once what Python asks in three
// calls a tensor.
#include <cstring>
#include <string>

#include "bind.h"

namespace py = pybind11;

namespace {

// From dlpack.h, version 1; what is not used is a plain pointer.
struct Tensor {
    void* data;
    int32_t device[2];
    int32_t dimensions;
    uint32_t dtype;
    const int64_t* shape;
    const int64_t* strides;
    uint64_t byte_offset;
};
struct ExchangeTable {
    uint32_t major, minor;
    void* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, Tensor* out);  // borrowed; no stream waits
    void* current_stream;
};

uint64_t mixed(uint64_t hash, uint64_t word) {  // as splitmix64 does
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ull;
    return hash ^ (hash >> 31);
}

// Two numbers a tensor, 0 for None: its address, and a hash of dtype, shape and strides. None where
// the table does not know a tensor (a sparse one) or is of another version.
py::object layouts(const py::list& tensors, const py::capsule& exchange) {
    const auto* table = exchange.get_pointer<ExchangeTable>();
    if (table->major != 1) return py::none();
    const Py_ssize_t count = PyList_GET_SIZE(tensors.ptr());
    std::string numbers(2 * sizeof(uint64_t) * count, '\0');
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* object = PyList_GET_ITEM(tensors.ptr(), i);
        if (object == Py_None) continue;
        Tensor tensor;
        if (table->tensor_from_object(object, &tensor) != 0) {
            PyErr_Clear();
            return py::none();
        }
        uint64_t hash = mixed(tensor.dimensions + 1, tensor.dtype);
        for (int32_t d = 0; d < tensor.dimensions; ++d)
            hash = mixed(mixed(hash, tensor.shape[d]), tensor.strides[d]);
        const uint64_t address = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
        std::memcpy(&numbers[sizeof address * i], &address, sizeof address);
        std::memcpy(&numbers[sizeof address * (count + i)], &hash, sizeof hash);
    }
    return py::bytes(numbers);
}

}  // namespace

void bind_layouts(py::module_& m) {
    m.def("layouts", &layouts, py::arg("tensors"), py::arg("exchange"),
          "Addresses, then hashes of dtype, shape and strides, of 8 bytes each; None: not known.");
}

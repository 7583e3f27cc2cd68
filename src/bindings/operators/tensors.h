// Converts torch tensors, through torch's stable C interface, for the core: memory, dtype, shape. No
// arithmetic. A list of 300 tensors must cost little, so lists hold torch's plain handles, and names are
// composed only for messages.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashoptim/dtype.h"

namespace flashoptim::operators {

using torch::stable::Tensor;

/// Refuses an argument. Torch turns the exception into a RuntimeError. The Python package recognises it by
/// its first words and raises a ValueError.
[[noreturn]] void refuse(const std::string& why);

/// The name of a tensor in messages: "masters" or "gradients[3]".
struct Name {
    const char* argument;
    std::int64_t index = -1;
    [[nodiscard]] std::string text() const;
};

/// A schema's Tensor[] as an operator receives it. TensorLists takes ownership of it.
struct ListArgument {
    StableListHandle handle;
};

/// The tensors of a list. It owns them after they are taken.
class HandleList {
public:
    HandleList(ListArgument list, const char* name) noexcept : name_(name), list_(list.handle) {}
    ~HandleList() { release(); }
    HandleList(const HandleList&) = delete;
    HandleList& operator=(const HandleList&) = delete;
    [[nodiscard]] std::size_t size() const { return handles_.size(); }
    [[nodiscard]] AtenTensorHandle operator[](std::size_t n) const { return handles_[n]; }
    [[nodiscard]] std::span<const AtenTensorHandle> handles() const { return handles_; }
    [[nodiscard]] const char* name() const { return name_; }
    [[nodiscard]] Name name(std::size_t n) const { return {name_, static_cast<std::int64_t>(n)}; }

private:
    template <std::size_t>
    friend class TensorLists;
    void take();
    void release() noexcept;

    const char* name_;
    StableListHandle list_;
    std::vector<AtenTensorHandle> handles_;
};

/// Holds Python's lock (GIL), if there is a Python. Releasing a tensor takes the lock each time. Holding it
/// for a whole list halves the cost of a call with many tensors.
class PythonLock {
public:
    PythonLock();
    ~PythonLock();
    PythonLock(const PythonLock&) = delete;
    PythonLock& operator=(const PythonLock&) = delete;

private:
    bool is_held_ = false;
    int state_ = 0;
};

/// A list and its name in messages.
struct NamedList {
    ListArgument list;
    const char* name;
};

/// All lists of a call. It owns every list before it reads the first, so that none leaks if reading throws.
template <std::size_t kCount>
class TensorLists {
public:
    template <class... List>
    explicit TensorLists(const List&... lists) : all{HandleList(lists.list, lists.name)...} {
        for (auto& list : all) list.take();
    }
    ~TensorLists() {
        const PythonLock lock;
        for (auto& list : all) list.release();
    }
    TensorLists(const TensorLists&) = delete;
    TensorLists& operator=(const TensorLists&) = delete;

    std::array<HandleList, kCount> all;
};
template <class... List>
TensorLists(const List&...) -> TensorLists<sizeof...(List)>;

/// The device of a tensor.
struct TensorDevice {
    std::int32_t type = aoti_torch_device_type_cpu();
    std::int32_t index = 0;

    [[nodiscard]] bool is_host() const { return type == aoti_torch_device_type_cpu(); }
    /// "the CPU", "cuda:0".
    [[nodiscard]] std::string text() const;
    bool operator==(const TensorDevice&) const = default;
};
TensorDevice device_of(AtenTensorHandle tensor);

/// The memory of a tensor.
struct TensorMemory {
    void* data = nullptr;
    TensorDevice device;
    std::int32_t torch_dtype = 0;
    std::int64_t numel = 0;
    bool is_contiguous = false;  // row-major
    bool is_aligned = true;      // its address is a multiple of the element size
};
/// The memory of a tensor with its shape and strides, which are borrowed.
struct View : TensorMemory {
    std::span<const std::int64_t> sizes, strides;

    /// Whether the elements fill the memory from `data` on without holes or overlaps, in any order.
    [[nodiscard]] bool fills_memory() const;
    /// Whether both have the same shape and memory order.
    [[nodiscard]] bool lies_as(const View& other) const;
    /// "of shape [2, 3] and strides [3, 1]".
    [[nodiscard]] std::string text() const;
};

/// memory_of() and view_of() refuse sparse tensors and tensors of other devices. With kNeeded they also
/// refuse an address that is not a multiple of the element size.
enum class Alignment : std::uint8_t { kNeeded, kAny };
TensorMemory memory_of(AtenTensorHandle tensor, Name name, TensorDevice device = {},
                       Alignment alignment = Alignment::kNeeded);
View view_of(AtenTensorHandle tensor, Name name, TensorDevice device = {},
             Alignment alignment = Alignment::kNeeded);
/// As view_of(). Also refuses another dtype, holes and repeated elements.
View dense_view_of(AtenTensorHandle tensor, DType dtype, Name name, TensorDevice device = {});
/// The dtype of a weight or gradient. Refuses others than float32, bfloat16 and float16.
DType floating_dtype_of(const View& view, Name name);
/// Refuses another dtype, and another number of elements.
void check_dtype(const TensorMemory& memory, DType dtype, Name name);
void check_numel(const TensorMemory& memory, std::int64_t numel, Name name);

/// The elements of a contiguous int64 or float64 tensor. Only those of a CPU tensor may be read.
std::span<std::int64_t> integers_of(AtenTensorHandle tensor, Name name, TensorDevice device = {});
std::span<const double> doubles_of(AtenTensorHandle tensor, Name name, TensorDevice device = {});
/// number_of() reads the single element of a CPU tensor of float32 or float64. float_of() returns the address
/// of a float32 element on any device.
double number_of(AtenTensorHandle tensor, Name name);
const float* float_of(AtenTensorHandle tensor, Name name, TensorDevice device);

/// New uninitialised tensors. empty_as() has the shape, memory order and device of `other`; empty_flat() is
/// one-dimensional on the CPU.
Tensor empty_as(const View& other, DType dtype);
Tensor empty_flat(std::int64_t count, DType dtype);
Tensor make_integers(std::span<const std::int64_t> values);
Tensor make_zeros(std::int64_t count, TensorDevice device);
Tensor make_number(double value);
/// A new uninitialised float64 matrix on the CPU.
Tensor make_doubles(std::int64_t rows, std::int64_t columns);
/// A new uninitialised float64 scalar.
Tensor empty_number(TensorDevice device);
/// Copies between tensors of one shape and any strides and devices.
void copy(AtenTensorHandle to, AtenTensorHandle from);
/// The tensor itself if it is on that device, else a copy there with the same shape, strides and dtype. A
/// copy to the CPU blocks.
Tensor on_device(const Tensor& tensor, TensorDevice device);

}  // namespace flashoptim::operators

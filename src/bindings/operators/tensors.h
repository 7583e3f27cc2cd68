// Torch tensors through the stable C interface, as the core wants to see them: memory, dtype, shape.
// Arithmetic never stands here. A list of 300 tensors must cost little, so lists hold torch's plain handles
// and names are put together only for messages.
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

/// Refuses an argument. Torch makes a RuntimeError of it; by its first words the Python side knows
/// it and raises a ValueError.
[[noreturn]] void refuse(const std::string& why);

/// What a tensor is called in messages: "masters" or "gradients[3]".
struct Name {
    const char* argument;
    std::int64_t index = -1;
    [[nodiscard]] std::string text() const;
};

/// A schema's Tensor[] as a kernel receives it; TensorLists takes it over.
struct ListArgument {
    StableListHandle handle;
};

/// The tensors of a list, which it owns once they are taken.
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

/// Python's lock, where there is a Python. Letting go of a tensor takes it each time; inside this it is had
/// already, which halves what a call with many tensors costs.
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

/// A list and its name.
struct NamedList {
    ListArgument list;
    const char* name;
};

/// All lists of a call. Each is owned before the first is read, so that none is left
/// behind where reading fails.
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

/// Where a tensor lies.
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
    bool is_aligned = true;      // lies at a multiple of its elements' size
};
/// The same with its shape and strides, which are borrowed.
struct View : TensorMemory {
    std::span<const std::int64_t> sizes, strides;

    /// Whether its elements are the numel places from `data` on, in whatever order.
    [[nodiscard]] bool fills_memory() const;
    /// Whether both have one shape, and their elements in the same places.
    [[nodiscard]] bool lies_as(const View& other) const;
    /// "of shape [2, 3] and strides [3, 1]".
    [[nodiscard]] std::string text() const;
};

/// Both refuse tensors of other devices, sparse ones and, unless it may be, one at an address that is no
/// multiple of its elements' size.
enum class Alignment : std::uint8_t { kNeeded, kAny };
TensorMemory memory_of(AtenTensorHandle tensor, Name name, TensorDevice device = {},
                       Alignment alignment = Alignment::kNeeded);
View view_of(AtenTensorHandle tensor, Name name, TensorDevice device = {},
             Alignment alignment = Alignment::kNeeded);
/// Also refuses holes and repeated elements, and any dtype but this.
View dense_view_of(AtenTensorHandle tensor, DType dtype, Name name, TensorDevice device = {});
/// What a weight or a gradient may be: float32, bfloat16 or float16.
DType floating_dtype_of(const View& view, Name name);
/// Refuses any dtype but this, or any number of elements but this.
void check_dtype(const TensorMemory& memory, DType dtype, Name name);
void check_numel(const TensorMemory& memory, std::int64_t numel, Name name);

/// Elements of a contiguous tensor of int64 or float64. They are read on the CPU only.
std::span<std::int64_t> integers_of(AtenTensorHandle tensor, Name name, TensorDevice device = {});
std::span<const double> doubles_of(AtenTensorHandle tensor, Name name, TensorDevice device = {});
/// The element of a CPU tensor of one, as float32 or float64; the place of a float32 of any device.
double number_of(AtenTensorHandle tensor, Name name);
const float* float_of(AtenTensorHandle tensor, Name name, TensorDevice device);

/// New tensors, not initialised: in another's shape and memory order and on its device, or
/// of one dimension on the CPU.
Tensor empty_as(const View& other, DType dtype);
Tensor empty_flat(std::int64_t count, DType dtype);
Tensor make_integers(std::span<const std::int64_t> values);
Tensor make_zeros(std::int64_t count, TensorDevice device);
Tensor make_number(double value);
/// float64 of rows and columns, not initialised.
Tensor make_doubles(std::int64_t rows, std::int64_t columns);
/// A float64 of no dimensions, not initialised.
Tensor empty_number(TensorDevice device);
/// Copies between tensors of one shape, whatever their strides and devices.
void copy(AtenTensorHandle to, AtenTensorHandle from);
/// The same tensor where it is on that device, else a copy there with its shape, strides and dtype;
/// waits for a copy to the CPU.
Tensor on_device(const Tensor& tensor, TensorDevice device);

}  // namespace flashoptim::operators

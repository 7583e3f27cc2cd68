// Torch tensors through the stable C interface, as the core wants to see them: memory, dtype, shape. Arithmetic never stands here.
// A list of 300 tensors must cost little, so lists hold torch's plain handles and names are put together only for messages.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flashoptim/dtype.h"

namespace flashoptim::operators {

using torch::stable::Tensor;

/// Refuses an argument; Python sees a ValueError.
[[noreturn]] void refuse(const std::string& why);

/// What a tensor is called in messages: "masters" or "gradients[3]".
struct Name {
    const char* argument;
    std::int64_t index = -1;
    [[nodiscard]] std::string text() const;
};

/// A schema's Tensor[] as a kernel receives it; TensorList takes it over.
struct ListArgument {
    StableListHandle handle;
};

/// The tensors of a list; lets go of them at its end.
class TensorList {
public:
    TensorList(ListArgument list, const char* name);
    ~TensorList();
    TensorList(const TensorList&) = delete;
    TensorList& operator=(const TensorList&) = delete;
    [[nodiscard]] std::size_t size() const { return handles_.size(); }
    [[nodiscard]] AtenTensorHandle operator[](std::size_t n) const { return handles_[n]; }
    [[nodiscard]] Name name(std::size_t n) const { return {name_, static_cast<std::int64_t>(n)}; }

private:
    const char* name_;
    std::vector<AtenTensorHandle> handles_;
};

/// A strided CPU tensor. Shape and strides are borrowed from it.
struct View {
    void* data = nullptr;
    std::int32_t torch_dtype = 0;
    std::int64_t numel = 0;
    std::span<const std::int64_t> sizes, strides;

    /// Whether its elements are the numel places from `data` on, in whatever order.
    [[nodiscard]] bool fills_memory() const;
};

/// Refuses tensors of another device or of a sparse layout.
View view_of(AtenTensorHandle tensor, Name name);
/// Also refuses holes and repeated elements, and any dtype but this.
View dense_view_of(AtenTensorHandle tensor, DType dtype, Name name);
/// The same for weights and gradients: float32, bfloat16 or float16. Gradients may have holes.
DType floating_dtype_of(const View& view, Name name);

/// Elements of a contiguous CPU tensor of int64 or float64.
std::span<std::int64_t> integers_of(AtenTensorHandle tensor, Name name);
std::span<const double> doubles_of(AtenTensorHandle tensor, Name name);
/// The element of a tensor of one, as float32 or float64.
double number_of(AtenTensorHandle tensor, Name name);

std::string shape_text(std::span<const std::int64_t> values);

/// New CPU tensors, not initialised: in another's shape and memory order, or of one dimension.
Tensor empty_as(const View& other, DType dtype);
Tensor empty_flat(std::int64_t count, DType dtype);
Tensor make_integers(std::span<const std::int64_t> values);
Tensor make_zeros(std::int64_t count);
Tensor make_number(double value);
/// Copies between tensors of one shape, whatever their strides.
void copy(AtenTensorHandle to, AtenTensorHandle from);

}  // namespace flashoptim::operators

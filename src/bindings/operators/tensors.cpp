// Converts torch tensors for the core.
#include "tensors.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "flashoptim/layout.h"

namespace flashoptim::operators {

namespace {

/// Torch's numbers for the dtypes of the core, in the order of the core.
const std::array<std::int32_t, 6>& torch_dtypes() {
    static const std::array<std::int32_t, 6> kNumbers = {
        aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(),
        aoti_torch_dtype_int8(),    aoti_torch_dtype_uint8(),    aoti_torch_dtype_int16()};
    return kNumbers;
}
std::int32_t torch_dtype(DType dtype) { return torch_dtypes()[static_cast<std::size_t>(dtype)]; }

std::string dtype_text(std::int32_t number) {
    const auto found = std::find(torch_dtypes().begin(), torch_dtypes().end(), number);
    if (found != torch_dtypes().end()) {
        return std::string(flashoptim::name_of(static_cast<DType>(found - torch_dtypes().begin())));
    }
    if (number == aoti_torch_dtype_float64()) return "float64";
    if (number == aoti_torch_dtype_int64()) return "int64";
    return "of another dtype";
}

/// Bytes of an element; 1 for a dtype that no operator reads.
std::size_t element_size(std::int32_t number) {
    const auto found = std::find(torch_dtypes().begin(), torch_dtypes().end(), number);
    if (found != torch_dtypes().end()) return size_of(static_cast<DType>(found - torch_dtypes().begin()));
    const bool is_wide = number == aoti_torch_dtype_float64() || number == aoti_torch_dtype_int64();
    return is_wide ? sizeof(double) : 1;
}

std::string list_text(std::span<const std::int64_t> values) {
    std::string text = "[";
    for (std::size_t n = 0; n < values.size(); ++n) text += (n == 0 ? "" : ", ") + std::to_string(values[n]);
    return text + "]";
}

template <class T>
std::span<T> elements_of(AtenTensorHandle tensor, std::int32_t dtype, const char* dtype_name, Name name,
                         TensorDevice device) {
    const auto memory = memory_of(tensor, name, device);
    if (memory.torch_dtype != dtype || !memory.is_contiguous) {
        refuse(name.text() + " is " +
               (memory.is_contiguous ? dtype_text(memory.torch_dtype) : "not contiguous") +
               ": it must be a contiguous tensor of " + dtype_name);
    }
    return {static_cast<T*>(memory.data), static_cast<std::size_t>(memory.numel)};
}

Tensor empty(std::span<const std::int64_t> sizes, std::span<const std::int64_t> strides, std::int32_t dtype,
             TensorDevice device) {
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(),
                                                    strides.data(), dtype, device.type, device.index, &made));
    return Tensor(made);
}
Tensor empty_flat(std::int64_t count, std::int32_t dtype, TensorDevice device = {}) {
    const std::int64_t stride = 1;
    return empty({&count, 1}, {&stride, 1}, dtype, device);
}

}  // namespace

void refuse(const std::string& why) { throw std::runtime_error("flashoptim_cpp refuses: " + why); }

std::string Name::text() const {
    return index < 0 ? argument : std::string(argument) + '[' + std::to_string(index) + ']';
}

void HandleList::take() {
    std::size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list_, &size));
    handles_.reserve(size);
    for (std::size_t n = 0; n < size; ++n) {
        StableIValue value = 0;
        TORCH_ERROR_CODE_CHECK(torch_list_get_item(list_, n, &value));
        handles_.push_back(torch::stable::detail::to<AtenTensorHandle>(value));
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(std::exchange(list_, nullptr)));
}
void HandleList::release() noexcept {
    for (auto* handle : handles_) aoti_torch_delete_tensor_object(handle);
    handles_.clear();
    if (list_ != nullptr) torch_delete_list(std::exchange(list_, nullptr));
}

namespace {

/// A function of Python's stable ABI. It is looked up by name, so that the library can be used without
/// Python; null if there is no Python.
template <class Function>
Function python_function(const char* name) {
    return reinterpret_cast<Function>(::dlsym(RTLD_DEFAULT, name));
}

}  // namespace

PythonLock::PythonLock() {
    static const auto kIsInitialized = python_function<int (*)()>("Py_IsInitialized");
    static const auto kEnsure = python_function<int (*)()>("PyGILState_Ensure");
    is_held_ = kIsInitialized != nullptr && kEnsure != nullptr && kIsInitialized() != 0;
    if (is_held_) state_ = kEnsure();
}
PythonLock::~PythonLock() {
    static const auto kRelease = python_function<void (*)(int)>("PyGILState_Release");
    if (is_held_) kRelease(state_);
}

bool View::fills_memory() const {
    if (is_contiguous || numel == 0) return true;
    std::int64_t last = 0;  // index of the last element, which must be inside the memory
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] > 1) last += (sizes[d] - 1) * strides[d];
    }
    return last == numel - 1;
}
bool View::lies_as(const View& other) const {
    return std::ranges::equal(sizes, other.sizes) && same_memory_order(sizes, strides, other.strides);
}
std::string View::text() const {
    return "of shape " + list_text(sizes) + " and strides " + list_text(strides);
}

std::string TensorDevice::text() const {
    if (is_host()) return "the CPU";
    if (type == aoti_torch_device_type_cuda()) return "cuda:" + std::to_string(index);
    return type == aoti_torch_device_type_meta() ? "the meta device" : "another kind of device";
}

TensorDevice device_of(AtenTensorHandle tensor) {
    TensorDevice device;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device.type));
    if (!device.is_host()) TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device.index));
    return device;
}

TensorMemory memory_of(AtenTensorHandle tensor, Name name, TensorDevice device, Alignment alignment) {
    static const auto kStrided = aoti_torch_layout_strided();
    TensorMemory memory;
    memory.device = device_of(tensor);
    if (memory.device != device) {
        refuse(name.text() + " is on " + memory.device.text() + ": it must be on " + device.text());
    }
    std::int32_t layout = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
    if (layout != kStrided) {
        refuse(name.text() + " is sparse: make it dense (for an embedding: sparse=False)");
    }
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &memory.data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &memory.torch_dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &memory.numel));
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &memory.is_contiguous));
    memory.is_aligned = memory.numel == 0 ||
                        reinterpret_cast<std::uintptr_t>(memory.data) % element_size(memory.torch_dtype) == 0;
    if (!memory.is_aligned && alignment == Alignment::kNeeded) {
        refuse(name.text() +
               " lies at an address that is no multiple of its elements' size: give a copy of it");
    }
    return memory;
}
View view_of(AtenTensorHandle tensor, Name name, TensorDevice device, Alignment alignment) {
    View view{memory_of(tensor, name, device, alignment), {}, {}};
    std::int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
    view.sizes = {sizes, static_cast<std::size_t>(dims)};
    view.strides = {strides, static_cast<std::size_t>(dims)};
    return view;
}
View dense_view_of(AtenTensorHandle tensor, DType dtype, Name name, TensorDevice device) {
    const auto view = view_of(tensor, name, device);
    check_dtype(view, dtype, name);
    if (!view.fills_memory()) {
        refuse(name.text() + ' ' + view.text() + " is not dense in memory: give a contiguous copy");
    }
    return view;
}

void check_dtype(const TensorMemory& memory, DType dtype, Name name) {
    if (memory.torch_dtype == torch_dtype(dtype)) return;
    refuse(name.text() + " is " + dtype_text(memory.torch_dtype) + ": it must be " +
           std::string(flashoptim::name_of(dtype)));
}
void check_numel(const TensorMemory& memory, std::int64_t numel, Name name) {
    if (memory.numel == numel) return;
    refuse(name.text() + " has " + std::to_string(memory.numel) + " elements: it must have " +
           std::to_string(numel));
}

DType floating_dtype_of(const View& view, Name name) {
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        if (view.torch_dtype == torch_dtype(dtype)) return dtype;
    }
    refuse(name.text() + " is " + dtype_text(view.torch_dtype) + ": give float32, bfloat16 or float16");
}

std::span<std::int64_t> integers_of(AtenTensorHandle tensor, Name name, TensorDevice device) {
    return elements_of<std::int64_t>(tensor, aoti_torch_dtype_int64(), "int64", name, device);
}
std::span<const double> doubles_of(AtenTensorHandle tensor, Name name, TensorDevice device) {
    return elements_of<const double>(tensor, aoti_torch_dtype_float64(), "float64", name, device);
}

double number_of(AtenTensorHandle tensor, Name name) {
    const auto number = memory_of(tensor, name);
    check_numel(number, 1, name);
    if (number.torch_dtype == aoti_torch_dtype_float64()) return *static_cast<const double*>(number.data);
    check_dtype(number, DType::kFloat32, name);
    return static_cast<double>(*static_cast<const float*>(number.data));
}
const float* float_of(AtenTensorHandle tensor, Name name, TensorDevice device) {
    const auto number = memory_of(tensor, name, device);
    check_numel(number, 1, name);
    check_dtype(number, DType::kFloat32, name);
    return static_cast<const float*>(number.data);
}

Tensor empty_as(const View& other, DType dtype) {
    return empty(other.sizes, other.strides, torch_dtype(dtype), other.device);
}
Tensor empty_flat(std::int64_t count, DType dtype) { return empty_flat(count, torch_dtype(dtype)); }

Tensor make_integers(std::span<const std::int64_t> values) {
    auto made = empty_flat(static_cast<std::int64_t>(values.size()), aoti_torch_dtype_int64());
    std::copy(values.begin(), values.end(), static_cast<std::int64_t*>(made.data_ptr()));
    return made;
}
Tensor make_zeros(std::int64_t count, TensorDevice device) {
    auto made = empty_flat(count, aoti_torch_dtype_int64(), device);
    TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(made.get()));
    return made;
}
Tensor make_number(double value) {
    auto made = empty_number({});
    *static_cast<double*>(made.data_ptr()) = value;
    return made;
}
Tensor make_doubles(std::int64_t rows, std::int64_t columns) {
    const std::array<std::int64_t, 2> sizes = {rows, columns}, strides = {columns, 1};
    return empty(sizes, strides, aoti_torch_dtype_float64(), {});
}
Tensor empty_number(TensorDevice device) { return empty({}, {}, aoti_torch_dtype_float64(), device); }

void copy(AtenTensorHandle to, AtenTensorHandle from) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(to, from, 0));
}

Tensor on_device(const Tensor& tensor, TensorDevice device) {
    const auto from = device_of(tensor.get());
    if (from == device) return tensor;
    const auto view = view_of(tensor.get(), {"a tensor"}, from);
    if (!view.fills_memory())
        refuse("a tensor " + view.text() + " is not dense in memory: give a contiguous copy");
    auto copied = empty(view.sizes, view.strides, view.torch_dtype, device);
    copy(copied.get(), tensor.get());
    return copied;
}

}  // namespace flashoptim::operators

// Translates and checks the plain data of the C interface: enumerations, sized structs, tensors. All checks
// of these are here.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "flashoptim/c_api.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/quantize.h"

namespace flashoptim::capi {

/// Returns the pointer. @throws InvalidArgument if it is not aligned for its type.
template <class T>
T* aligned(T* pointer, const char* name) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignof(T) == 0) return pointer;
    throw InvalidArgument(std::string(name) + " is not aligned: its address must be a multiple of " +
                          std::to_string(alignof(T)));
}
template <class T>
T& not_null(T* pointer, const char* name) {
    if (pointer == nullptr) throw InvalidArgument(std::string(name) + " is NULL: pass a valid pointer");
    return *aligned(pointer, name);
}
/// `count` elements in the caller's memory. If `count` is 0, the pointer is not checked.
template <class T>
std::span<T> span_of(T* values, std::size_t count, const char* name) {
    constexpr auto kMost = static_cast<std::size_t>(PTRDIFF_MAX) / sizeof(T);
    if (count == 0) return {};
    if (count > kMost) {
        throw InvalidArgument(std::string(name) + " is of " + std::to_string(count) +
                              " elements, more than memory can have: check the count");
    }
    return {&not_null(values, name), count};
}
/// 0 or 1.
bool to_bool(std::int32_t value, const char* name);

Rule to_rule(std::int32_t value);
MomentKind to_moment_kind(std::int32_t value);

/// The sizes of a struct in all versions of this header, the current one last. Each version ends at the end
/// of a field.
template <class Struct>
constexpr std::array<std::size_t, 1> kSizes = {sizeof(Struct)};
template <>
inline constexpr std::array<std::size_t, 2> kSizes<flashoptim_options> = {offsetof(flashoptim_options, place),
                                                                          sizeof(flashoptim_options)};

template <>
inline constexpr std::array<std::size_t, 2> kSizes<flashoptim_hyperparameters> = {
    offsetof(flashoptim_hyperparameters, reserved) + sizeof(std::int32_t),
    sizeof(flashoptim_hyperparameters)};

/// @throws InvalidArgument for a size that no version of the struct has.
template <class Struct>
void check_size(std::size_t size, const char* name) {
    if (size > sizeof(Struct) && size <= FLASHOPTIM_MAX_STRUCT_SIZE) return;
    if (std::ranges::find(kSizes<Struct>, size) != kSizes<Struct>.end()) return;
    throw InvalidArgument(
        std::string(name) + "->size is " + std::to_string(size) +
        ", which is no version's: fill the struct by its init function or macro, or set size "
        "to its sizeof");
}

/// Reads the caller's struct of any version. Fields that a shorter struct of an older program lacks take the
/// defaults. A longer struct of a newer program is accepted if the bytes that this library does not know are
/// 0.
template <class Struct>
Struct read_struct(const Struct& from, Struct defaults, const char* name) {
    const auto size = from.size;
    check_size<Struct>(size, name);
    const auto* const bytes = reinterpret_cast<const unsigned char*>(&from);
    for (auto n = sizeof(Struct); n < size; ++n) {
        if (bytes[n] == 0) continue;
        throw InvalidArgument(std::string(name) + " has a field behind its first " +
                              std::to_string(sizeof(Struct)) +
                              " bytes that is not 0, which this library does not know: update the library");
    }
    std::memcpy(&defaults, bytes, std::min(size, sizeof(Struct)));
    return defaults;
}
/// Fills in the caller's struct of any version. Bytes that this library does not know become 0.
template <class Struct>
void write_struct(Struct value, std::size_t size, Struct& to, const char* name) {
    check_size<Struct>(size, name);
    value.size = size;
    auto* const bytes = reinterpret_cast<unsigned char*>(&to);
    std::memcpy(bytes, &value, std::min(size, sizeof(Struct)));
    if (size > sizeof(Struct)) std::memset(bytes + sizeof(Struct), 0, size - sizeof(Struct));
}

flashoptim_options to_c(const OptimizerOptions& options);
flashoptim_hyperparameters to_c(const Hyperparameters& hyperparameters);
flashoptim_memory to_c(const MemoryReport& report);

/// NULL gives the defaults.
OptimizerOptions from_c(const flashoptim_options* options);
Hyperparameters from_c(const flashoptim_hyperparameters& hyperparameters);
/// `name` is used in messages.
TensorView from_c(const flashoptim_tensor& tensor, const char* name);
/// A name or path as a string. NULL gives an empty one. @throws InvalidArgument for invalid UTF-8.
std::string text_of(const char* text, const char* name);
std::optional<Shard> from_c(const flashoptim_shard* shard, std::int32_t ndim);

/// The storage and layout of the moment of a tensor of fp32 values.
struct CodedMoment {
    MomentStorage storage;
    Layout layout;
    std::size_t numel, scales;
};
CodedMoment coded_moment(std::int32_t format, const flashoptim_tensor& values);

/// The plan of `count` weights, and a check of the caller's buffers for it.
StoragePlan weight_plan(std::int32_t format, std::int32_t dtype, std::int32_t master_weight_bits,
                        std::size_t count);
void check_weight_buffers(const StoragePlan& plan, const float* masters, const void* weights,
                          const void* corrections);

}  // namespace flashoptim::capi

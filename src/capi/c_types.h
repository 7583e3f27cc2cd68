// The C interface's plain data in terms of the library: enumerations, sized structs, tensors. Every check of them is here.
#pragma once

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

template <class T>
T& not_null(T* pointer, const char* name) {
    if (pointer == nullptr) throw InvalidArgument(std::string(name) + " is NULL: pass a valid pointer");
    return *pointer;
}
template <class T>
std::span<T> span_of(T* values, std::size_t count) {
    if (count != 0) not_null(values, "values");
    return {values, count};
}

Rule to_rule(std::int32_t value);
Moment to_moment(std::int32_t value);

/// Bytes that the first version of a struct had: all up to the end of its last field then.
constexpr std::size_t kFirstOptions = offsetof(flashoptim_options, place);
constexpr std::size_t kFirstHyperparameters = sizeof(flashoptim_hyperparameters);
constexpr std::size_t kFirstMemory = sizeof(flashoptim_memory);

template <class Struct>
void check_size(std::size_t size, std::size_t smallest, const char* name) {
    if (size < smallest) {
        throw InvalidArgument(std::string(name) + "->size is " + std::to_string(size) +
                              ": fill the struct by its init function, or set size to its sizeof");
    }
    if (size > sizeof(Struct)) {
        throw InvalidArgument(std::string(name) + "->size is " + std::to_string(size) +
                              ", more than this library knows: update the library");
    }
}

/// The caller's struct of any known size, over defaults of the present one.
template <class Struct>
Struct read_struct(const Struct* from, std::size_t smallest, Struct defaults, const char* name) {
    const auto size = not_null(from, name).size;
    check_size<Struct>(size, smallest, name);
    std::memcpy(&defaults, from, size);
    return defaults;
}
template <class Struct>
void write_struct(Struct value, std::size_t size, std::size_t smallest, Struct* to, const char* name) {
    not_null(to, name);
    check_size<Struct>(size, smallest, name);
    value.size = size;
    std::memcpy(to, &value, size);
}

flashoptim_options to_c(const OptimizerOptions& options);
flashoptim_hyperparameters to_c(const Hyperparameters& hyperparameters);
flashoptim_memory to_c(const MemoryReport& report);

/// Null: the defaults.
OptimizerOptions from_c(const flashoptim_options* options);
Hyperparameters from_c(const flashoptim_hyperparameters& hyperparameters);
TensorView from_c(const flashoptim_tensor& tensor);
std::optional<Shard> from_c(const flashoptim_shard* shard, std::int32_t ndim);

/// Those of the C++ optimizer of this rule.
Hyperparameters default_hyperparameters(Rule rule);

/// What a moment's codes and scales are for a tensor of fp32 values.
struct MomentPlan {
    MomentStorage storage;
    Layout layout;
    std::size_t numel, scales;
};
MomentPlan moment_plan(std::int32_t format, const flashoptim_tensor& values);

/// The plan of `count` weights; whether the caller's pointers are there.
StoragePlan weight_plan(std::int32_t format, std::int32_t dtype, std::int32_t master_weight_bits,
                        std::size_t count);
void check_weight_buffers(const StoragePlan& plan, const void* masters, const void* weights,
                          const void* corrections);

}  // namespace flashoptim::capi

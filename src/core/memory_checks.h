// Checks whether memory of the caller can be read as elements of its dtype.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flashoptim/dtype.h"
#include "flashoptim/error.h"

namespace flashoptim {

inline bool is_aligned(const void* data, DType dtype) {
    const auto size = size_of(dtype);
    return size == 0 || reinterpret_cast<std::uintptr_t>(data) % size ==
                            0;  // size 0: an unknown dtype, which other checks refuse
}

/// Checks that an address is a multiple of the element size. `what` names the memory in the message.
///
/// @throws InvalidArgument if it is not.
inline void check_alignment(const void* data, DType dtype, std::string_view what) {
    if (is_aligned(data, dtype)) return;
    throw InvalidArgument(std::string(what) + " lies at an address that is not a multiple of the " +
                          std::to_string(size_of(dtype)) + " bytes of its " + std::string(name_of(dtype)) +
                          " elements: give memory that is, such as a copy's");
}

}  // namespace flashoptim

// Whether memory that a caller gives can be read as its elements.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flashoptim/dtype.h"
#include "flashoptim/error.h"

namespace flashoptim {

inline bool is_aligned(const void* data, DType dtype) {
    const auto size = size_of(dtype);
    return size == 0 ||
           reinterpret_cast<std::uintptr_t>(data) % size == 0;  // 0: no dtype, which others refuse
}

/// @throws InvalidArgument for an address that is not a multiple of the element's size; `what` lies there.
inline void check_alignment(const void* data, DType dtype, std::string_view what) {
    if (is_aligned(data, dtype)) return;
    throw InvalidArgument(std::string(what) + " lies at an address that is not a multiple of the " +
                          std::to_string(size_of(dtype)) + " bytes of its " + std::string(name_of(dtype)) +
                          " elements: give memory that is, such as a copy's");
}

}  // namespace flashoptim

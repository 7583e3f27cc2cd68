// The errors of the library. Every message is one line that names the thing and the remedy.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <stdexcept>
#include <string>

namespace flashoptim {

/// Base of all exceptions of the library except std::bad_alloc.
class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A value, shape, dtype, stride or option that the called function cannot take.
class InvalidArgument : public Error {
    using Error::Error;
};

/// A file or folder that is missing or cannot be read or written, or a full disk.
class IoError : public Error {
    using Error::Error;
};

/// A file with wrong content: malformed, truncated, or with an unexpected key, shape or dtype.
class FormatError : public Error {
    using Error::Error;
};

/// A non-finite gradient under the policy NonFinite::kError.
class NonFiniteError : public Error {
    using Error::Error;
};

}  // namespace flashoptim

#endif

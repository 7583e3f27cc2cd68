// Errors of the C interface: an exception becomes a status and one line of text of the calling thread.
#pragma once

#include <string_view>

#include "flashoptim/c_api.h"

namespace flashoptim::capi {

/// The message of the last failure of this thread. Allocates nothing, so it also works out of memory.
const char* last_error() noexcept;
/// Stores `what` as one line of valid UTF-8, cut if it is too long. Returns `status`.
flashoptim_status fail(flashoptim_status status, std::string_view what) noexcept;
/// Stores the message of the exception that is being handled and returns its status.
flashoptim_status fail_with_current_exception() noexcept;

/// Runs `body` and turns an exception into a status. Every function that can fail is one call of this.
template <class Body>
flashoptim_status guarded(Body body) noexcept {
    try {
        body();
        return FLASHOPTIM_OK;
    } catch (...) {
        return fail_with_current_exception();
    }
}

}  // namespace flashoptim::capi

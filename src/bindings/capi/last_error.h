// What went wrong, as the C interface says it: exceptions become a status and one line of
// text of the calling thread.
#pragma once

#include <string_view>

#include "flashoptim/c_api.h"

namespace flashoptim::capi {

/// Allocates nothing, so that it works where memory has ended.
const char* last_error() noexcept;
/// Keeps `what` in one line of valid UTF-8, cut where it is too long.
flashoptim_status fail(flashoptim_status status, std::string_view what) noexcept;
/// The status of the exception that is being handled.
flashoptim_status fail_with_current_exception() noexcept;

/// Runs `body`; what it throws becomes a status. Every function that can fail is one call of this.
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

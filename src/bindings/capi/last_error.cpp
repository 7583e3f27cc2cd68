#include "last_error.h"

#include <array>
#include <cstddef>
#include <exception>
#include <new>
#include <stdexcept>

#include "flashoptim/cuda.h"
#include "flashoptim/error.h"

namespace flashoptim::capi {

namespace {

using Message = std::array<char, FLASHOPTIM_MAX_ERROR_BYTES>;

Message& message_of_thread() noexcept {
    constinit thread_local Message message{};
    return message;
}

/// Whether a byte is a continuation byte of UTF-8.
bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

}  // namespace

const char* last_error() noexcept { return message_of_thread().data(); }

flashoptim_status fail(flashoptim_status status, std::string_view what) noexcept {
    auto& message = message_of_thread();
    std::size_t length = what.size();
    if (length >= message.size()) {
        length = message.size() - 1;
        while (length > 0 && is_continuation(what[length])) --length;
    }
    for (std::size_t n = 0; n < length; ++n) {
        const auto byte = static_cast<unsigned char>(what[n]);
        message[n] = byte < 0x20U || byte == 0x7fU ? ' ' : what[n];  // what may quote a name with line breaks
    }
    message[length] = '\0';
    return status;
}

flashoptim_status fail_with_current_exception() noexcept {
    try {
        throw;
    } catch (const InvalidArgument& error) {
        return fail(FLASHOPTIM_INVALID_ARGUMENT, error.what());
    } catch (const IoError& error) {
        return fail(FLASHOPTIM_IO_ERROR, error.what());
    } catch (const FormatError& error) {
        return fail(FLASHOPTIM_FORMAT_ERROR, error.what());
    } catch (const NonFiniteError& error) {
        return fail(FLASHOPTIM_NONFINITE, error.what());
    } catch (const cuda::CudaError& error) {
        return fail(FLASHOPTIM_DEVICE_ERROR, error.what());
    } catch (const std::bad_alloc&) {
        return fail(FLASHOPTIM_OUT_OF_MEMORY, "out of memory: use smaller tensors or a smaller format");
    } catch (const std::length_error&) {
        return fail(FLASHOPTIM_OUT_OF_MEMORY,
                    "more than memory can ever have was asked for: check the shapes");
    } catch (const std::exception& error) {
        return fail(FLASHOPTIM_INTERNAL_ERROR, error.what());
    } catch (...) {
        return fail(FLASHOPTIM_INTERNAL_ERROR, "an unknown exception: please report it");
    }
}

}  // namespace flashoptim::capi

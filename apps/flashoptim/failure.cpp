// What the exceptions of this program, LibTorch, the allocator and the threads mean to a user.
#include "failure.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <exception>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <system_error>

#include "commands.h"
#include "console.h"
#include "flashoptim/error.h"
#include "flashoptim/system/one_line.h"

namespace flashoptim::app {
namespace {

constexpr std::string_view kReport = "report this with the command that you typed";

bool holds(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// The first line of a library's message: what follows is a backtrace or advice for its own developers.
/// Without the place in the library's source.
std::string_view essence(std::string_view text) {
    text = text.substr(0, text.find('\n'));
    if (text.starts_with("[enforce fail at ")) {
        if (const auto end = text.find("] "); end != std::string_view::npos) text.remove_prefix(end + 2);
    }
    while (!text.empty() && (text.back() == '.' || text.back() == ' ')) text.remove_suffix(1);
    return text;
}

bool is_about_memory(std::string_view text) {
    for (const std::string_view part : {"t allocate memory", "not enough memory", "out of memory",
                                        "Cannot allocate memory", "ALLOC_FAILED"}) {
        if (holds(text, part)) return true;
    }
    return false;
}

/// "out of memory", with the part of the message that says how much was asked for.
std::string out_of_memory(std::string_view message, std::string_view less_memory) {
    constexpr std::string_view kAsked = "ried to allocate ";
    std::string_view amount;
    if (const auto found = message.find(kAsked); found != std::string_view::npos) {
        amount = message.substr(found + kAsked.size());
        amount = amount.substr(0, amount.find_first_of(".\n", amount.find(' ')));
    }
    return fmt::format("out of memory{}{}{}; {}", holds(message, "CUDA") ? " on the device" : "",
                       amount.empty() ? "" : ": no room for another ", amount, less_memory);
}

}  // namespace

Failure current_failure(Phase phase, std::string_view less_memory) {
    const int code = phase == Phase::kRunning ? kOtherError : kBadInput;
    try {
        throw;
    } catch (const NonFiniteError& error) {
        return {kNotFinite, error.what()};
    } catch (const Error& error) {
        return {kBadInput, error.what()};
    } catch (const c10::Error& error) {
        const std::string_view message = error.what_without_backtrace();
        if (is_about_memory(message)) return {code, out_of_memory(message, less_memory)};
        return {code, fmt::format("LibTorch failed: {}; {}", essence(message), kReport)};
    } catch (const std::bad_alloc&) {
        return {code, out_of_memory("", less_memory)};
    } catch (const std::length_error&) {  // of a container that would be larger than memory can be
        return {code, out_of_memory("", less_memory)};
    } catch (const std::filesystem::filesystem_error& error) {
        return {kBadInput, fmt::format("{}: {}; check the path and its permissions", error.path1().native(),
                                       error.code().message())};
    } catch (const std::system_error& error) {
        if (error.code() == std::errc::resource_unavailable_try_again) {
            return {code, fmt::format("a thread cannot be started: {}; give fewer --threads, or raise the "
                                      "limit on processes (ulimit -u)",
                                      error.code().message())};
        }
        return {code, fmt::format("{}; {}", essence(error.what()), kReport)};
    } catch (const std::exception& error) {
        if (is_about_memory(error.what())) return {code, out_of_memory(error.what(), less_memory)};
        return {code, fmt::format("{}; {}", essence(error.what()), kReport)};
    } catch (...) {
        return {code, fmt::format("an unknown exception; {}", kReport)};
    }
}

int report(const Failure& failure) {
    tell("flashoptim: {}\n", one_line(failure.line));
    return failure.code;
}

}  // namespace flashoptim::app

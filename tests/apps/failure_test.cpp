// Messages of exceptions that come from other libraries. If these fail, a user reads a
// library's text without a remedy.
#include "failure.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <exception>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "commands.h"
#include "flashoptim/error.h"

namespace flashoptim::app {
namespace {

template <typename Thrown>
Failure failure_of(const Thrown& thrown, Phase phase = Phase::kBeforeFirstStep) {
    try {
        throw thrown;
    } catch (...) {
        return current_failure(phase);
    }
}

void expect(const Failure& failure, int code, const std::string& named, const std::string& remedy) {
    EXPECT_EQ(failure.code, code) << failure.line;
    EXPECT_NE(failure.line.find(named), std::string::npos) << failure.line;
    EXPECT_NE(failure.line.find("; " + remedy), std::string::npos) << failure.line;
    EXPECT_EQ(failure.line.find('\n'), std::string::npos) << failure.line;
}

c10::Error torch_error(const std::string& text) { return {{__func__, __FILE__, __LINE__}, text}; }

TEST(Failure, MemoryIsNamedWithTheRemedyWhoeverLacksIt) {
    const std::string less = "use a smaller --model";
    expect(failure_of(std::bad_alloc()), kBadInput, "out of memory", less);
    expect(failure_of(std::bad_alloc(), Phase::kRunning), kOtherError, "out of memory", less);
    expect(failure_of(std::bad_array_new_length()), kBadInput, "out of memory", less);
    expect(failure_of(std::length_error("cannot create std::vector larger than max_size()")), kBadInput,
           "out of memory", less);
    expect(
        failure_of(torch_error("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                               "allocate memory: you tried to allocate 4000000000000 bytes. Error code 12"),
                   Phase::kRunning),
        kOtherError, "4000000000000 bytes", less);
    expect(failure_of(torch_error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore lines")),
           kBadInput, "on the device", less);
}

TEST(Failure, TextsOfLibrariesAreOneLineWithARemedy) {
    expect(failure_of(torch_error("[enforce fail at x.cpp:1] shape mismatch.\nsecond line")), kBadInput,
           "LibTorch failed: shape mismatch;", "report this");
    expect(failure_of(std::runtime_error("first\nsecond"), Phase::kRunning), kOtherError, "first",
           "report this");
    expect(failure_of(7), kBadInput, "unknown exception", "report this");
    expect(failure_of(std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again))),
           kBadInput, "a thread cannot be started", "give fewer --threads");
    expect(failure_of(std::filesystem::filesystem_error("status", "a/b",
                                                        std::make_error_code(std::errc::permission_denied))),
           kBadInput, "a/b: ", "check the path");
}

TEST(Failure, OurOwnErrorsKeepTheirTextAndCode) {
    EXPECT_EQ(failure_of(InvalidArgument("x; y"), Phase::kRunning).code, kBadInput);
    EXPECT_EQ(failure_of(IoError("x; y")).line, "x; y");
    EXPECT_EQ(failure_of(NonFiniteError("x; y"), Phase::kRunning).code, kNotFinite);
}

}  // namespace
}  // namespace flashoptim::app

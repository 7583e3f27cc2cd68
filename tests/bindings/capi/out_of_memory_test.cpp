// Every function of c_api.h with memory that ends at each of its allocations in turn. If this fails, a C
// program that runs out of memory dies, or goes on with an optimizer that is half changed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "every_function.h"
#include "failing_allocations.h"

namespace flashoptim {

namespace {

/// A subject with what it held before the call.
struct Tried {
    explicit Tried(const function& f, const std::string& folder)
        : of(std::make_unique<subject>()), before(std::make_unique<contents>()) {
        make_subject(of.get(), &f, folder.c_str());
        handle = of->with.optimizer;
        read_contents(of.get(), handle, before.get());
    }
    Tried(Tried&&) = default;
    Tried& operator=(Tried&&) = delete;
    ~Tried() {
        if (!of) return;
        EXPECT_EQ(flashoptim_destroy(handle), is_destroyed ? FLASHOPTIM_INVALID_ARGUMENT : FLASHOPTIM_OK);
        if (of->made != nullptr) {
            EXPECT_EQ(flashoptim_destroy(of->made), FLASHOPTIM_OK);
        }
    }
    std::unique_ptr<subject> of;
    std::unique_ptr<contents> before;
    flashoptim_optimizer* handle = nullptr;
    flashoptim_status status = FLASHOPTIM_OK;
    bool is_destroyed = false;
};

class CApiOutOfMemory : public ::testing::TestWithParam<function> {};
INSTANTIATE_TEST_SUITE_P(Functions, CApiOutOfMemory, ::testing::ValuesIn(functions),
                         [](const auto& f) { return std::string(f.param.name); });

}  // namespace

TEST_P(CApiOutOfMemory, LeavesEverythingAsItWas) {
    const auto& f = GetParam();
    // A file system in memory where there is one: each save waits for its disk several times.
    const std::filesystem::path in_memory = "/dev/shm";
    const auto parent =
        std::filesystem::is_directory(in_memory) ? in_memory : std::filesystem::path(::testing::TempDir());
    const std::string folder = parent / (f.name + std::string("-") + std::to_string(::getpid()));
    {
        Tried saved(f, folder);
        if ((f.has & FOLDER) != 0) {
            ASSERT_EQ(flashoptim_save(saved.handle, folder.c_str(), 1), FLASHOPTIM_OK);
        }
    }
    fail_each_allocation([&] { return Tried(f, folder); },
                         [&](Tried& t) {
                             t.status = f.call(&t.of->with);
                             t.is_destroyed = f.call == call_destroy && t.status == FLASHOPTIM_OK;
                         },
                         [&](Tried& t, const FailedAllocation&) {
                             if (t.status == f.good) return;  // it did without
                             EXPECT_EQ(t.status, FLASHOPTIM_OUT_OF_MEMORY) << flashoptim_last_error();
                             EXPECT_NE(std::string(flashoptim_last_error()).find("memory"), std::string::npos)
                                 << flashoptim_last_error();
                             const auto after = std::make_unique<contents>();
                             read_contents(t.of.get(), t.handle, after.get());
                             EXPECT_EQ(std::memcmp(t.before.get(), after.get(), sizeof *after), 0)
                                 << "the call that failed changed something";
                             EXPECT_EQ(f.call(&t.of->with), f.good)
                                 << "once there is memory again: " << flashoptim_last_error();
                             t.is_destroyed = f.call == call_destroy;
                             if (t.is_destroyed) return;
                             // And goes on as one whose memory never ended.
                             Tried twin(f, folder);
                             EXPECT_EQ(f.call(&twin.of->with), f.good);
                             for (auto* of : {&t, &twin})
                                 EXPECT_EQ(flashoptim_step(of->handle, nullptr, nullptr), FLASHOPTIM_OK);
                             read_contents(twin.of.get(), twin.handle, twin.before.get());
                             read_contents(t.of.get(), t.handle, after.get());
                             EXPECT_EQ(std::memcmp(twin.before.get(), after.get(), sizeof *after), 0)
                                 << "the next step is another";
                             EXPECT_EQ(failures, 0);
                         });
    std::filesystem::remove_all(folder);
}

}  // namespace flashoptim

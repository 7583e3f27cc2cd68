// Reading and writing one checkpoint from several threads: a reader gets one complete
// checkpoint, never a mixture of two.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::int32_t kLastStep = 30;

class CheckpointThreads : public ::testing::TestWithParam<Replace> {};

TEST_P(CheckpointThreads, ReadersSeeCompleteCheckpointsWhileOneIsWritten) {
    const TestFolder folder;
    StepCheckpoint(0).write_to(folder / "ckpt", GetParam());
    std::atomic<bool> done = false;
    std::array<std::string, 2> faults;
    std::vector<std::thread> readers;
    for (std::string& fault : faults) {
        readers.emplace_back([&] {
            std::int32_t last_step = 0;
            while (!done && fault.empty()) {
                try {
                    const std::int32_t step = step_in(folder / "ckpt");
                    if (step < last_step)
                        fault = std::to_string(step) + " after " + std::to_string(last_step);
                    last_step = step;
                } catch (const Error& error) {
                    fault = error.what();
                }
            }
        });
    }
    for (std::int32_t step = 1; step <= kLastStep; ++step)
        StepCheckpoint(step).write_to(folder / "ckpt", GetParam());
    done = true;
    for (std::thread& reader : readers) reader.join();
    EXPECT_EQ(faults[0], "");
    EXPECT_EQ(faults[1], "");
    EXPECT_EQ(step_in(folder / "ckpt"), kLastStep);
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
}

INSTANTIATE_TEST_SUITE_P(Threads, CheckpointThreads,
                         ::testing::Values(Replace::kSwapIfPossible, Replace::kMoveAside), replace_name);

TEST(CheckpointSharing, SeveralWritersOfOneNameLeaveOneOfTheirCheckpoints) {
    const TestFolder folder;
    std::array<std::string, 3> faults;
    std::vector<std::thread> writers;
    for (std::size_t writer = 0; writer < faults.size(); ++writer) {
        writers.emplace_back([&, writer] {
            try {
                for (int round = 0; round < 10; ++round) {
                    StepCheckpoint(static_cast<std::int32_t>(writer)).write_to(folder / "ckpt");
                }
            } catch (const Error& error) {
                faults[writer] = error.what();
            }
        });
    }
    for (std::thread& writer : writers) writer.join();
    for (const std::string& fault : faults) EXPECT_EQ(fault, "");
    EXPECT_GE(step_in(folder / "ckpt"), 0);
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
}

TEST(CheckpointSharing, OneFileServesManyReaders) {
    const TestFolder folder;
    StepCheckpoint(3, 100'000).write_to(folder / "ckpt");
    const auto file = Checkpoint::open(folder / "ckpt").file("weights");
    std::array<int, 4> wrong{};
    std::vector<std::thread> readers;
    for (int& count : wrong) {
        readers.emplace_back([&] {
            const auto values = read_as<std::int32_t>(file, "layer.weight");
            count = static_cast<int>(
                std::ranges::count_if(values, [](std::int32_t value) { return value != 3; }));
        });
    }
    for (std::thread& reader : readers) reader.join();
    for (const int count : wrong) EXPECT_EQ(count, 0);
}

}  // namespace
}  // namespace flashoptim::checkpoint

// Every allocation of every public function fails in turn: only std::bad_alloc or an error of ours leaves,
// and everything on the disk and in the optimizer is what it was. If this fails, a machine that is short of
// memory costs a checkpoint or a run.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>

#include "failing_allocations.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/system/atomic_path.h"
#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

/// Everything in a folder that is a file, with its content.
std::map<std::string, std::string> content_of(const fs::path& folder) {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        if (entry.is_regular_file()) found[entry.path().string()] = read_raw(entry.path());
    }
    return found;
}

class NoMemory : public ::testing::Test {
protected:
    /// `act` either fails and leaves the disk as it was, or reaches what `reached` says.
    template <typename Act, typename Reached>
    void expect_all_or_nothing(Act act, Reached reached) {
        const auto before = content_of(folder_.path());
        const auto failed = fail_each_allocation(
            [&] {
                if (content_of(folder_.path()) != before) restore(before);  // an attempt that had enough
                return 0;
            },
            [&](int) { act(); },
            [&](int, const FailedAllocation& failure) {
                if (failure.error) {
                    EXPECT_EQ(content_of(folder_.path()), before);
                } else {
                    reached();
                }
            });
        EXPECT_GT(failed, 0);
    }

    /// Makes the folder hold these files and nothing else.
    void restore(const std::map<std::string, std::string>& content) const {
        fs::remove_all(folder_.path());
        fs::create_directory(folder_.path());
        for (const auto& [path, text] : content) {
            fs::create_directories(fs::path(path).parent_path());
            write_raw(path, text);
        }
    }

    TestFolder folder_{fast_place()};
    const StepCheckpoint old_{1, 4}, next_{2, 4};
};

TEST_F(NoMemory, WhileACheckpointIsReplaced) {
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        old_.write_to(folder_ / "ckpt");
        expect_all_or_nothing([&] { next_.write_to(folder_ / "ckpt", how); },
                              [&] { EXPECT_EQ(step_in(folder_ / "ckpt"), 2); });
        EXPECT_EQ(names_in(folder_.path()), (std::set<std::string>{"ckpt"}));
    }
}

TEST_F(NoMemory, WhileAFirstCheckpointIsWritten) {
    expect_all_or_nothing([&] { next_.write_to(folder_ / "ckpt"); },
                          [&] { EXPECT_EQ(step_in(folder_ / "ckpt"), 2); });
}

TEST_F(NoMemory, WhileAFileIsReplaced) {
    write_file(folder_ / "x.json", "old");
    expect_all_or_nothing([&] { write_file(folder_ / "x.json", "new"); },
                          [&] { EXPECT_EQ(read_raw(folder_ / "x.json"), "new"); });
    EXPECT_EQ(names_in(folder_.path()), (std::set<std::string>{"x.json"}));
}

TEST_F(NoMemory, WhileTensorsAreWrittenAndRead) {
    const fs::path file = folder_ / "x.safetensors";
    write_safetensors(file, old_.files[0].tensors);
    expect_all_or_nothing([&] { write_safetensors(file, next_.files[0].tensors); },
                          [&] { SafetensorsFile::open(file); });
    expect_all_or_nothing(
        [&] {
            const auto opened = SafetensorsFile::open(file);
            for (const auto& tensor : opened.tensors()) opened.read(opened.tensor(tensor.name));
        },
        [] {});
}

TEST_F(NoMemory, WhileACheckpointIsReadOrRemoved) {
    old_.write_to(folder_ / "ckpt");
    expect_all_or_nothing([&] { EXPECT_EQ(step_in(folder_ / "ckpt"), 1); }, [] {});
    expect_all_or_nothing([&] { EXPECT_TRUE(checkpoint::exists(folder_ / "ckpt")); }, [] {});
    expect_all_or_nothing([&] { checkpoint::remove(folder_ / "ckpt"); },
                          [&] { EXPECT_FALSE(fs::exists(folder_ / "ckpt")); });
}

// What a killed save left is put back, or removed, when memory ends.
TEST_F(NoMemory, WhileASaveFindsWhatAKilledOneLeft) {
    const std::string name = workspace_name("ckpt", "0123456789abcdef0123456789abcdef");
    fs::create_directory(folder_ / name);
    std::string journal = journal_opening("ckpt", name);
    for (const char* noted :
         {"checkpoint.json", "metadata.json", "optimizer.safetensors", "weights.safetensors"}) {
        journal += std::string(noted) + '\0';
    }
    write_raw(folder_ / name / "journal", journal);
    old_.write_to(folder_ / name / "old");
    next_.write_to(folder_ / name / "new");
    const auto before = content_of(folder_.path());
    fail_each_allocation(
        [&] {
            restore(before);
            return 0;
        },
        [&](int) { StepCheckpoint(3, 4).write_to(folder_ / "ckpt"); },
        [&](int, const FailedAllocation& failure) {
            EXPECT_EQ(step_in(folder_ / "ckpt"), failure.error ? 1 : 3);
        });
}

/// Two groups of SGD, one of them with momentum or without: loading the other's state makes or drops buffers.
struct Trained {
    Trained(double momentum, int steps) {
        Hyperparameters second;
        second.learning_rate = 0.5;
        second.momentum = momentum;
        optimizer.add_group(second);
        for (std::size_t n = 0; n < weights.size(); ++n) {
            optimizer.add_parameter({weights[n].data(), DType::kFloat32, {8, 40}, {}},
                                    "w" + std::to_string(n), n % 2);
            optimizer.set_gradient(n, {gradient.data(), DType::kFloat32, {8, 40}, {}});
        }
        for (int step = 0; step < steps; ++step) optimizer.step();
    }
    std::string everything() {
        std::string all;
        for (std::size_t id = 0; id < weights.size(); ++id) {
            all += std::to_string(optimizer.step_count(id)) + (optimizer.has_momentum(id) ? "m" : "-");
            for (const auto& tensor : optimizer.state(id)) {
                all += tensor.name;
                all.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
            }
            all.append(reinterpret_cast<const char*>(weights[id].data()), sizeof weights[id]);
        }
        for (std::size_t group = 0; group < 2; ++group) {
            all += std::to_string(optimizer.hyperparameters(group).learning_rate) + " " +
                   std::to_string(optimizer.hyperparameters(group).momentum) + " ";
        }
        return all;
    }
    static OptimizerOptions one_thread() {
        OptimizerOptions options;
        options.threads = 1;
        return options;
    }
    static std::array<float, 320> filled(float value) {
        std::array<float, 320> values{};
        values.fill(value);
        return values;
    }

    std::array<std::array<float, 320>, 4> weights{filled(1), filled(2), filled(3), filled(4)};
    std::array<float, 320> gradient = filled(0.25F);
    SGD optimizer{{}, one_thread()};
};

TEST_F(NoMemory, WhileAnOptimizerIsSaved) {
    Trained trained(0.9, 2);
    save_optimizer(trained.optimizer, folder_ / "ckpt");
    trained.optimizer.step();
    const std::string before = trained.everything();
    expect_all_or_nothing([&] { save_optimizer(trained.optimizer, folder_ / "ckpt"); }, [] {});
    EXPECT_EQ(trained.everything(), before);
}

TEST_F(NoMemory, WhileAnOptimizerIsLoaded) {
    for (const double momentum : {0.0, 0.9}) {
        Trained saved(momentum, 3);
        save_optimizer(saved.optimizer, folder_ / "ckpt");
        const std::string other = Trained(0.9 - momentum, 1).everything(), loaded = saved.everything();
        saved.optimizer.step();
        const std::string next = saved.everything();
        const auto failed =
            fail_each_allocation([&] { return std::make_unique<Trained>(0.9 - momentum, 1); },
                                 [&](auto& t) { load_optimizer(t->optimizer, folder_ / "ckpt"); },
                                 [&](auto& t, const FailedAllocation& failure) {
                                     EXPECT_TRUE(t->everything() == (failure.error ? other : loaded));
                                     load_optimizer(t->optimizer, folder_ / "ckpt");
                                     EXPECT_TRUE(t->everything() == loaded);
                                     t->optimizer.step();
                                     EXPECT_TRUE(t->everything() == next);
                                 });
        EXPECT_GT(failed, 100);
    }
}

// Faults found when memory is short must be reported as what they are or as a lack of memory.
TEST_F(NoMemory, WhileDamagedFilesAreRefused) {
    const fs::path file = folder_ / "x.safetensors";
    for (const char* header :
         {R"({"a":{"dtype":"F7","shape":[4],"data_offsets":[0,4]}})", R"({"a":1,"a":2})",
          "{\"a\":", R"({"a":{"dtype":"I8","shape":[3],"data_offsets":[0,4]}})", "{\"\xFF\":1}"}) {
        write_raw(file, raw_safetensors(header, 4));
        fail_each_allocation([] { return 0; },
                             [&](int) {
                                 try {
                                     SafetensorsFile::open(file);
                                 } catch (const FormatError&) {  // what it throws with enough memory
                                 }
                             },
                             [](int, const FailedAllocation&) {});
    }
}

}  // namespace
}  // namespace flashoptim::checkpoint

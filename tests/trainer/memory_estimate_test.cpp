// The least memory of a run. If it is too much, a run that fits is refused; if it is nothing, absurd
// runs die in their first step.
#include "trainer/memory_estimate.h"

#include <gtest/gtest.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <fstream>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "loop_fixture.h"
#include "trainer/process_memory.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

TrainOptions run_of(const std::string& preset) {
    TrainOptions options;
    options.model.preset = preset;
    options.model.vocabulary_size = llama_config(options.model).vocabulary_size;
    options.schedule.total_steps = 2;
    return options;
}

// Bytes per parameter as the formats are documented; norms are too few to show.
TEST(MemoryNeed, IsWhatTheFormatsAreKnownToTake) {
    struct Expected {
        Rule rule;
        Format format;
        double weights, states, gradients;
    };
    for (const Expected& e : {Expected{Rule::kAdamW, Format::kNative, 2, 3.125, 2},
                              Expected{Rule::kAdamW, Format::kPaper, 2, 3.125, 2},
                              Expected{Rule::kAdamW, Format::kFloat32, 4, 8, 4},
                              Expected{Rule::kLion, Format::kNative, 2, 2.0625, 2},
                              Expected{Rule::kSGD, Format::kFloat32, 4, 4, 4}}) {
        TrainOptions options = run_of("llama-30m");
        options.optimizer.rule = e.rule;
        options.optimizer.hyperparameters = training_defaults(e.rule);
        options.optimizer.format = e.format;
        const MemoryNeed need = memory_need(options);
        const auto parameters = static_cast<double>(parameter_count(options.model));
        const double rounding = 0.01;  // the norms
        EXPECT_NEAR(static_cast<double>(need.weights) / parameters, e.weights, rounding);
        EXPECT_NEAR(static_cast<double>(need.states) / parameters, e.states, rounding) << rule_name(e.rule);
        EXPECT_NEAR(static_cast<double>(need.gradients) / parameters, e.gradients, rounding);
        EXPECT_EQ(need.accumulators, 0);
        options.accumulation = 2;
        EXPECT_EQ(memory_need(options).accumulators, 4 * parameter_count(options.model));
        EXPECT_LT(memory_need(options).gradients, need.gradients);
    }
}

// Every product is checked: the largest run that the options allow needs more than 64
// bits can say, and that is said.
TEST(MemoryNeed, OfAbsurdRunsIsTheMostThatThereIs) {
    TrainOptions options = run_of("llama-8b");
    options.batch_size = options.accumulation = 1 << 20;
    options.sequence_length = 1 << 24;
    options.model.vocabulary_size = 1 << 24;
    EXPECT_EQ(memory_need(options).peak(), INT64_MAX);
    options.activation_checkpointing = true;
    EXPECT_GT(memory_need(options).peak(), std::int64_t{1} << 55);
}

TEST(MemoryNeed, IsRefusedWithBothFiguresAndTheRemedies) {
    const TrainOptions options = run_of("llama-8b");
    EXPECT_NO_THROW(require_memory(options, std::nullopt));
    EXPECT_NO_THROW(require_memory(options, AvailableMemory{1000 * kGiB, "the system"}));
    const std::string said = message_of<InvalidArgument>(
        [&] { require_memory(options, AvailableMemory{16 * kGiB, "the control group /sys/fs/cgroup/job"}); });
    for (const char* part :
         {"at least 5", " GiB of memory", "/sys/fs/cgroup/job has 16.0 GiB", "smaller model"}) {
        EXPECT_NE(said.find(part), std::string::npos) << said;
    }
    TrainOptions on_gpu = options;  // where the model is made on the host, and nothing else
    on_gpu.device = "cuda:0";
    EXPECT_LT(memory_need(on_gpu).peak(), 19 * kGiB);
    EXPECT_GT(memory_need(options).peak(), 50 * kGiB);
}

struct Shape {
    const char* preset;
    std::int64_t batch, sequence, accumulation;
    Format format;
    bool release, recompute;
};

// What cases before this one left in the process, and its peak.
void forget_former_peak() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
    std::ofstream("/proc/self/clear_refs") << 5;
}

// Never too much: what a run took, above what the process had before, is no less. Large enough that it is no
// rounding, and not so far below that the estimate tells nothing.
class MemoryTaken : public Loop, public testing::WithParamInterface<Shape> {};

TEST_P(MemoryTaken, IsNoLessThanTheEstimate) {
    TrainOptions options = tiny_run();
    options.model.preset = GetParam().preset;
    options.model.vocabulary_size = 256;
    options.batch_size = GetParam().batch;
    options.sequence_length = GetParam().sequence;
    options.accumulation = GetParam().accumulation;
    options.optimizer.format = GetParam().format;
    options.optimizer.gradient_release = GetParam().release;
    options.activation_checkpointing = GetParam().recompute;
    options.clip_norm = 0.0;
    options.schedule.total_steps = 2;
    options.schedule.warmup_steps = 0;
    options.evaluation_batches = 1;
    forget_former_peak();
    const std::int64_t before = process_memory().resident;
    Recorder recorder;
    const std::int64_t taken = train(options, recorder).peak_resident_bytes - before;
    const std::int64_t estimate = memory_need(options).peak();
    EXPECT_LE(estimate, taken);
    EXPECT_GT(estimate, taken / 8);
}

INSTANTIATE_TEST_SUITE_P(Shapes, MemoryTaken,
                         testing::Values(Shape{"llama-1m", 8, 256, 1, Format::kNative, false, false},
                                         Shape{"llama-1m", 8, 256, 2, Format::kFloat32, false, false},
                                         Shape{"llama-1m", 16, 256, 1, Format::kNative, true, true},
                                         Shape{"llama-30m", 1, 16, 1, Format::kNative, false, false}));

}  // namespace
}  // namespace flashoptim::trainer

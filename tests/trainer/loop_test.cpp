// The training loop: accumulation, resuming, refusals, memory by kind, and that it learns.
#include "trainer/loop.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/run_checkpoint.h"

namespace flashoptim::trainer {
namespace {

// Sentences with structure to learn, 20 kB, made here so that no test depends on a file.
std::string corpus() {
    const std::vector<std::string> subjects = {"the cat", "a dog", "my neighbour", "the old captain"};
    const std::vector<std::string> verbs = {" sees ", " follows ", " forgets ", " paints "};
    const std::vector<std::string> objects = {"the sea", "a red ball", "the quiet street", "some bread"};
    std::string text;
    std::uint32_t state = 1;
    const auto next = [&](std::size_t count) {
        state = state * 1664525U + 1013904223U;
        return (state >> 16) % count;
    };
    while (text.size() < 20'000) {
        text += subjects[next(4)];
        text += verbs[next(4)];
        text += objects[next(4)] + ".\n";
    }
    return text;
}

struct Killed : std::runtime_error {
    Killed() : std::runtime_error("killed") {}
};

// Keeps what a run reports, and can end it: by asking it to stop or as a kill would.
class Recorder : public TrainObserver {
public:
    void on_start(const RunInfo& info) override { start = info; }
    void on_step(const StepRecord& record) override {
        steps.push_back(record);
        if (record.step == killed_in_step) {
            throw Killed();
        }
    }
    void on_checkpoint(const CheckpointRecord& record) override { checkpoints.push_back(record); }
    void on_notice(const std::string& line) override { notices.push_back(line); }
    bool stop_requested() override { return !steps.empty() && steps.back().step == stop_after; }

    std::int64_t killed_in_step = 0;
    std::int64_t stop_after = 0;
    RunInfo start;
    std::vector<StepRecord> steps;
    std::vector<CheckpointRecord> checkpoints;
    std::vector<std::string> notices;
};

class Loop : public testing::Test {
protected:
    Loop() : data_(folder_.write("corpus.txt", corpus())) {}

    TrainOptions tiny_run(const std::string& out = {}) const {
        TrainOptions options;
        options.model.preset = "llama-tiny";
        options.data.path = data_;
        options.schedule.total_steps = 20;
        options.schedule.warmup_steps = 4;
        options.schedule.peak = 1e-2;
        options.batch_size = 4;
        options.sequence_length = 16;
        options.evaluation_interval = 5;
        options.evaluation_batches = 2;
        options.threads = 1;
        if (!out.empty()) {
            options.out = folder_.path() / out;
        }
        return options;
    }

    TemporaryFolder folder_;
    std::filesystem::path data_;
};

// metrics.csv without the columns that depend on the clock and the memory of the process.
std::string comparable_metrics(const std::filesystem::path& out) {
    std::istringstream file(read_all(out / "metrics.csv"));
    std::string line;
    std::string kept;
    while (std::getline(file, line)) {
        std::size_t end = 0;
        for (int column = 0; column < 6; ++column) {
            end = line.find(',', end) + 1;
        }
        kept += line.substr(0, end) + "\n";
    }
    return kept;
}

// The product of the whole: a loop that does not learn is of no use, in any format.
TEST_F(Loop, LearnsInEveryFormat) {
    for (const Format format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
        TrainOptions options = tiny_run();
        options.optimizer.format = format;
        options.schedule.total_steps = 60;
        options.batch_size = 8;
        Recorder recorder;
        const TrainResult result = train(options, recorder);
        EXPECT_EQ(result.last_step, 60);
        EXPECT_EQ(recorder.steps.size(), 60U);
        // ln 256 = 5.55 for a model that knows nothing; the letters' own frequencies give about 3.
        EXPECT_NEAR(recorder.steps.front().loss, std::log(256.0), 0.1) << format_name(format);
        EXPECT_LT(result.validation_loss.value(), 3.2) << format_name(format);
        EXPECT_EQ(result.bad_elements, 0);
        EXPECT_EQ(recorder.start.parameters, parameter_count(options.model));
    }
}

// Gradient release and activation checkpointing save memory; the model that comes out must be the same one.
TEST_F(Loop, SavingMemoryDoesNotChangeTheModel) {
    const auto trained = [&](const std::string& out, bool release, bool recompute) {
        TrainOptions options = tiny_run(out);
        options.clip_norm = 0.0;
        options.optimizer.gradient_release = release;
        options.activation_checkpointing = recompute;
        Recorder recorder;
        const TrainResult result = train(options, recorder);
        for (const StepRecord& record : recorder.steps) {
            EXPECT_GT(record.optimizer_seconds, 0.0);
            EXPECT_EQ(record.gradient_norm.has_value(), !release);
        }
        return read_all(result.checkpoint / "weights.safetensors") +
               read_all(result.checkpoint / "optimizer.safetensors");
    };
    const std::string plain = trained("plain", false, false);
    EXPECT_TRUE(plain == trained("released", true, false));
    EXPECT_TRUE(plain == trained("recomputed", false, true));
    EXPECT_TRUE(plain == trained("both", true, true));
}

struct Case {
    const char* name;
    Rule rule;
    Format format;
    int master_bits;
    bool release;
    std::int64_t accumulation;
};

class Resume : public Loop, public testing::WithParamInterface<Case> {};

// Somebody whose machine died twice must end with the model that they would have had.
TEST_P(Resume, TwiceKilledRunEqualsTheUninterruptedOneBitForBit) {
    const auto options_for = [&](const std::string& out) {
        TrainOptions options = tiny_run(out);
        options.optimizer.rule = GetParam().rule;
        options.optimizer.format = GetParam().format;
        options.optimizer.master_weight_bits = GetParam().master_bits;
        options.optimizer.gradient_release = GetParam().release;
        options.accumulation = GetParam().accumulation;
        options.clip_norm = GetParam().release ? 0.0 : 0.5;
        options.schedule.peak = GetParam().rule == Rule::kLion ? 1e-3 : 1e-2;
        options.checkpoint_interval = 5;
        return options;
    };
    Recorder whole;
    const TrainResult expected = train(options_for("whole"), whole);

    TrainOptions options = options_for("pieces");
    Recorder first;
    first.killed_in_step = 8;
    EXPECT_THROW(train(options, first), Killed);
    options.resume = options.out;
    Recorder second;
    second.killed_in_step = 13;
    EXPECT_THROW(train(options, second), Killed);
    EXPECT_EQ(second.start.first_step, 6);
    Recorder third;
    const TrainResult actual = train(options, third);
    EXPECT_EQ(third.start.first_step, 11);
    EXPECT_TRUE(third.notices.empty());

    ASSERT_EQ(actual.checkpoint.filename(), "step-00000020");
    for (const char* file : {"weights.safetensors", "optimizer.safetensors"}) {
        const std::string bytes = read_all(expected.checkpoint / file);
        EXPECT_GT(bytes.size(), 1000U) << file;
        EXPECT_TRUE(bytes == read_all(actual.checkpoint / file)) << file;
    }
    EXPECT_EQ(comparable_metrics(options.out), comparable_metrics(folder_.path() / "whole"));
    EXPECT_EQ(actual.validation_loss, expected.validation_loss);
}

INSTANTIATE_TEST_SUITE_P(
    Optimizers, Resume,
    testing::Values(Case{"AdamWNative", Rule::kAdamW, Format::kNative, 24, false, 1},
                    Case{"AdamWNativeRelease", Rule::kAdamW, Format::kNative, 24, true, 1},
                    Case{"AdamWNativeAccumulated", Rule::kAdamW, Format::kNative, 32, false, 2},
                    Case{"AdamWNative16", Rule::kAdamW, Format::kNative, 16, false, 1},
                    Case{"AdamWPaper", Rule::kAdamW, Format::kPaper, 24, false, 1},
                    Case{"AdamWReference", Rule::kAdamW, Format::kFloat32, 32, false, 1},
                    Case{"AdamNative", Rule::kAdam, Format::kNative, 24, false, 1},
                    Case{"LionNative", Rule::kLion, Format::kNative, 24, false, 1},
                    Case{"SgdNative", Rule::kSGD, Format::kNative, 24, false, 1},
                    Case{"SgdwPaper", Rule::kSGDW, Format::kPaper, 24, false, 1}),
    [](const auto& instance) { return std::string(instance.param.name); });

// Ctrl-C must cost nothing: what was trained is saved, and the run goes on from there.
TEST_F(Loop, StopIsAnEndWithACheckpoint) {
    Recorder whole;
    train(tiny_run("whole"), whole);
    TrainOptions options = tiny_run("stopped");
    Recorder stopped;
    stopped.stop_after = 7;
    const TrainResult part = train(options, stopped);
    EXPECT_TRUE(part.stopped);
    EXPECT_EQ(part.last_step, 7);
    EXPECT_EQ(part.checkpoint.filename(), "step-00000007");
    options.resume = part.checkpoint;
    Recorder rest;
    EXPECT_FALSE(train(options, rest).stopped);
    EXPECT_EQ(rest.start.first_step, 8);
    EXPECT_EQ(comparable_metrics(options.out), comparable_metrics(folder_.path() / "whole"));
}

// Going on with another model or optimizer would train on garbage; each refusal says which field differs.
TEST_F(Loop, CheckpointsOfOtherRunsAreRefusedByName) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 2;
    options.schedule.warmup_steps = 0;
    Recorder recorder;
    train(options, recorder);
    options.resume = options.out;
    const auto refusal = [&](auto&& change) {
        TrainOptions changed = options;
        change(changed);
        return message_of<FormatError>([&] {
            Recorder other;
            train(changed, other);
        });
    };
    const auto has = [](const std::string& text, const std::string& part) {
        EXPECT_NE(text.find(part), std::string::npos) << text;
    };
    has(refusal([](TrainOptions& o) { o.model.preset = "llama-1m"; }), "dim is 32 there and 128");
    has(refusal([](TrainOptions& o) { o.model.tied = true; }), "tied is false there and true");
    has(refusal([](TrainOptions& o) { o.optimizer.rule = Rule::kLion; }), "rule is adamw there and lion");
    has(refusal([](TrainOptions& o) { o.optimizer.format = Format::kPaper; }),
        "format is native there and paper");
    has(refusal([](TrainOptions& o) { o.optimizer.master_weight_bits = 32; }),
        "master_bits is 24 there and 32");
    has(refusal([](TrainOptions& o) { o.seed = 9; }), "seed is 0 there and 9");
    has(refusal([](TrainOptions& o) { o.batch_size = 2; }), "batch_size is 4 there and 2");
    has(refusal([](TrainOptions& o) { o.data.validation_fraction = 0.2; }), "training_tokens is");

    // What a user may change on purpose is only mentioned.
    TrainOptions longer = options;
    longer.schedule.total_steps = 3;
    Recorder more;
    EXPECT_EQ(train(longer, more).last_step, 3);
    ASSERT_EQ(more.notices.size(), 1U);
    has(more.notices.front(), "steps was 2 and is 3");
}

TEST_F(Loop, DamagedAndMissingCheckpointsAreNamed) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 1;
    options.schedule.warmup_steps = 0;
    Recorder recorder;
    const TrainResult result = train(options, recorder);
    options.resume = folder_.path() / "nowhere";
    Recorder again;
    EXPECT_NE(message_of<IoError>([&] { train(options, again); }).find("holds no checkpoint"),
              std::string::npos);
    options.resume = result.checkpoint;
    std::filesystem::resize_file(result.checkpoint / "optimizer.safetensors", 5000);
    EXPECT_NE(message_of<FormatError>([&] { train(options, again); }).find("optimizer.safetensors"),
              std::string::npos);
}

// What can never run must be refused before it leaves anything behind.
TEST_F(Loop, RefusedOptionsLeaveNoFolder) {
    const auto refuse = [&](auto&& change) {
        TrainOptions options = tiny_run("refused");
        change(options);
        Recorder recorder;
        EXPECT_THROW(train(options, recorder), InvalidArgument);
        EXPECT_FALSE(std::filesystem::exists(options.out));
    };
    refuse([](TrainOptions& o) { o.optimizer.master_weight_bits = 20; });
    refuse([](TrainOptions& o) {
        o.optimizer.format = Format::kPaper;
        o.optimizer.master_weight_bits = 16;
    });
    refuse([](TrainOptions& o) { o.optimizer.beta1 = 1.0; });
    refuse([](TrainOptions& o) { o.optimizer.weight_decay = -1.0; });
    refuse([](TrainOptions& o) { o.sequence_length = 100'000; });
    refuse([](TrainOptions& o) { o.model.vocabulary_size = 100; });
}

// A typing error in --out must not destroy the run that is there.
TEST_F(Loop, AnExistingRunIsNotOverwrittenUnasked) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 1;
    options.schedule.warmup_steps = 0;
    Recorder recorder;
    train(options, recorder);
    const std::string before = read_all(options.out / "metrics.csv");
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("holds a run already"),
              std::string::npos);
    EXPECT_EQ(read_all(options.out / "metrics.csv"), before);
    options.overwrite = true;
    EXPECT_NO_THROW(train(options, recorder));
}

// Going back to an earlier checkpoint must not leave later ones behind, from which the next resume would go on, nor drop them unasked.
TEST_F(Loop, GoingBackToAnEarlierCheckpointIsAskedFor) {
    TrainOptions options = tiny_run("run");
    options.checkpoint_interval = 5;
    Recorder recorder;
    train(options, recorder);
    options.resume = checkpoint_folder(options.out, 5);
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("checkpoint of step 20"),
              std::string::npos);
    EXPECT_EQ(newest_checkpoint_step(options.out), 20);
    options.overwrite = true;
    Recorder back;
    back.killed_in_step = 12;
    EXPECT_THROW(train(options, back), Killed);
    EXPECT_EQ(find_checkpoint(options.out).filename(), "step-00000010");

    TrainOptions elsewhere = tiny_run("elsewhere");
    elsewhere.resume = checkpoint_folder(options.out, 5);
    Recorder branch;
    EXPECT_EQ(train(elsewhere, branch).last_step, 20);
    EXPECT_EQ(branch.steps.front().step, 6);
}

TEST_F(Loop, KeepsOnlyTheNewestCheckpointsIfAsked) {
    TrainOptions options = tiny_run("run");
    options.checkpoint_interval = 5;
    options.kept_checkpoints = 2;
    Recorder recorder;
    train(options, recorder);
    EXPECT_EQ(recorder.checkpoints.size(), 4U);
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(options.out / "checkpoints")) {
        names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (std::vector<std::string>{"step-00000015", "step-00000020"}));
}

// The table of the README: what each way of training holds for a parameter.
TEST_F(Loop, MemoryByKindIsWhatTheFormatsSay) {
    const auto memory_of = [&](Format format, bool release, std::int64_t accumulation) {
        TrainOptions options = tiny_run();
        options.schedule.total_steps = 1;
        options.schedule.warmup_steps = 0;
        options.evaluation_batches = 1;
        options.model.preset = "llama-1m";
        options.batch_size = 1;
        options.optimizer.format = format;
        options.optimizer.gradient_release = release;
        options.clip_norm = 0.0;
        options.accumulation = accumulation;
        Recorder recorder;
        return train(options, recorder).memory;
    };
    const MemoryByKind reference = memory_of(Format::kFloat32, false, 1);
    const std::int64_t n = reference.parameters;
    EXPECT_EQ(reference.weights, 4 * n);
    EXPECT_EQ(reference.corrections, 0);
    EXPECT_EQ(reference.moments, 8 * n);
    EXPECT_EQ(reference.gradients, 4 * n);
    EXPECT_EQ(reference.total(), 16 * n);
    EXPECT_GT(reference.autocast_copies, n);
    EXPECT_LT(reference.autocast_copies, 2 * n);

    const MemoryByKind native = memory_of(Format::kNative, false, 1);
    EXPECT_EQ(native.weights, 2 * n);
    EXPECT_EQ(native.gradients, 2 * n);
    EXPECT_LE(native.per_parameter(native.total()), 7.2);
    EXPECT_EQ(native.autocast_copies, 0);

    const MemoryByKind released = memory_of(Format::kNative, true, 1);
    EXPECT_EQ(released.gradients, 0);
    EXPECT_LE(released.per_parameter(released.total()), 5.2);

    const MemoryByKind accumulated = memory_of(Format::kNative, false, 2);
    EXPECT_EQ(accumulated.gradients, 0);
    EXPECT_EQ(accumulated.accumulators, 4 * n);
}

// A step of four micro-batches must be the step of one batch four times as large.
TEST_F(Loop, AccumulationIsTheLargeBatch) {
    const auto steps_of = [&](std::int64_t batch, std::int64_t accumulation) {
        TrainOptions options = tiny_run();
        options.optimizer.format = Format::kFloat32;
        options.schedule.total_steps = 3;
        options.schedule.warmup_steps = 0;
        options.batch_size = batch;
        options.accumulation = accumulation;
        Recorder recorder;
        train(options, recorder);
        return recorder.steps;
    };
    const auto whole = steps_of(16, 1);
    const auto parts = steps_of(4, 4);
    for (std::size_t index = 0; index < whole.size(); ++index) {
        EXPECT_EQ(whole[index].tokens, parts[index].tokens);
        // Products in bf16, 2^-9 relative each: the same rows in other blocks. Losses are near 5, norms near 1.
        EXPECT_NEAR(whole[index].loss, parts[index].loss, 0.01) << index;
        EXPECT_NEAR(*whole[index].gradient_norm, *parts[index].gradient_norm,
                    0.01 * *whole[index].gradient_norm)
            << index;
    }
}

// Tables and plots are made from this file by programs; its keys are a promise.
TEST_F(Loop, SummaryHasTheAnnouncedKeys) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 2;
    options.schedule.warmup_steps = 0;
    Recorder recorder;
    const TrainResult result = train(options, recorder);
    const auto summary = nlohmann::json::parse(read_all(options.out / "summary.json"));
    ASSERT_EQ(summary.at("runs").size(), 1U);
    const auto& run = summary.at("runs").at(0);
    EXPECT_EQ(run.at("optimizer"), "adamw");
    EXPECT_EQ(run.at("format"), "native");
    EXPECT_EQ(run.at("master_bits"), 24);
    EXPECT_EQ(run.at("gradient_release"), false);
    EXPECT_EQ(run.at("seed"), 0);
    EXPECT_EQ(run.at("parameters"), result.memory.parameters);
    for (const char* kind : {"weights", "corrections", "moments", "scales", "gradients", "total"}) {
        EXPECT_TRUE(run.at("bytes_per_parameter").at(kind).is_number()) << kind;
    }
    EXPECT_GT(run.at("peak_resident_bytes"), 0);
    EXPECT_EQ(run.at("checkpoint_bytes"), result.checkpoint_bytes);
    EXPECT_EQ(run.at("validation_loss"), *result.validation_loss);
    EXPECT_TRUE(run.at("optimizer_step_seconds").is_number());
    EXPECT_TRUE(run.at("step_seconds").is_number());
}

// The bar of the model alone, beside which the memory of training is shown.
TEST_F(Loop, HeldModelHasWeightsAndNothingElse) {
    const TrainResult held = hold_model(tiny_run());
    EXPECT_EQ(held.memory.weights, 2 * held.memory.parameters);
    EXPECT_EQ(held.memory.total(), held.memory.weights);
    EXPECT_GT(held.peak_resident_bytes, held.memory.weights);
}

}  // namespace
}  // namespace flashoptim::trainer

// The training loop: accumulation, resuming, refusals, memory by kind, and that it learns. What happens to a
// folder that a run left is in run_folder_test.cpp.
#include "trainer/loop.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/libtorch_headers.h"
#include "loop_fixture.h"

namespace flashoptim::trainer {
namespace {

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
        EXPECT_NEAR(recorder.steps.front().loss, std::log(256.0), 0.1) << name_of(format);
        EXPECT_LT(result.validation_loss.value(), 3.2) << name_of(format);
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
            EXPECT_GT(record.optimizer_seconds.value_or(0.0), 0.0);
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
    int threads = 1;
};

class Resume : public Loop, public testing::WithParamInterface<Case> {};

// Somebody whose machine died twice must end with the model that they would have had.
TEST_P(Resume, TwiceKilledRunEqualsTheUninterruptedOneBitForBit) {
    const auto options_for = [&](const std::string& out) {
        TrainOptions options = tiny_run(out);
        options.optimizer.rule = GetParam().rule;
        options.optimizer.hyperparameters = training_defaults(GetParam().rule);
        options.optimizer.format = GetParam().format;
        options.optimizer.master_weight_bits = GetParam().master_bits;
        options.optimizer.gradient_release = GetParam().release;
        options.accumulation = GetParam().accumulation;
        options.threads = GetParam().threads;
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
                    Case{"AdamWNativeTwoThreads", Rule::kAdamW, Format::kNative, 24, false, 1, 2},
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
    has(refusal([](TrainOptions& o) { o.data.validation_fraction = 0.2; }), "another validation fraction");

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
    refuse([](TrainOptions& o) { o.optimizer.hyperparameters.beta1 = 1.0; });
    refuse([](TrainOptions& o) { o.optimizer.hyperparameters.weight_decay = -1.0; });
    refuse([](TrainOptions& o) { o.sequence_length = 100'000; });
    refuse([](TrainOptions& o) { o.model.vocabulary_size = 100; });
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
        // Products in bf16, 2^-9 relative each: the same rows in other blocks.
        // Losses are near 5, norms near 1.
        EXPECT_NEAR(whole[index].loss, parts[index].loss, 0.01) << index;
        EXPECT_NEAR(*whole[index].gradient_norm, *parts[index].gradient_norm,
                    0.01 * *whole[index].gradient_norm)
            << index;
    }
}

// Resuming a run that is complete must not put zeros in the place of what its training measured.
TEST_F(Loop, ResumingACompleteRunKeepsItsSummary) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 5;
    Recorder recorder;
    train(options, recorder);
    const std::string summary = read_all(options.out / "summary.json");
    const std::string metrics = read_all(options.out / "metrics.csv");
    options.resume = options.out;
    Recorder again;
    EXPECT_EQ(train(options, again).last_step, 5);
    EXPECT_TRUE(again.steps.empty());
    ASSERT_EQ(again.notices.size(), 1U);
    EXPECT_NE(again.notices[0].find("the run is complete"), std::string::npos) << again.notices[0];
    EXPECT_EQ(read_all(options.out / "summary.json"), summary);
    EXPECT_EQ(read_all(options.out / "metrics.csv"), metrics);

    // Killed between its last checkpoint and its summary.
    std::filesystem::remove(options.out / "summary.json");
    train(options, again);
    EXPECT_TRUE(std::filesystem::exists(options.out / "summary.json"));
}

// GPT-2's tokens and a model of bytes: the model must take the vocabulary that the
// data has, also when it goes on.
TEST_F(Loop, AModelOfBytesTakesTheVocabularyOfTokens) {
    std::string bytes;
    for (std::uint32_t index = 0; index < 2000; ++index) {
        const std::uint32_t token = index * 7919 % 30'001;
        bytes += static_cast<char>(token & 0xFF);
        bytes += static_cast<char>(token >> 8);
    }
    TrainOptions options = tiny_run("run");
    options.data.path = folder_.write("tokens.bin", bytes);
    options.schedule.total_steps = 5;
    Recorder first;
    first.stop_after = 3;
    train(options, first);
    EXPECT_EQ(first.start.vocabulary_size, 30'016);  // the multiple of 64 after 30,000, the largest token
    options.resume = options.out;
    Recorder rest;
    EXPECT_EQ(train(options, rest).last_step, 5);
    EXPECT_EQ(rest.start.vocabulary_size, 30'016);

    TrainOptions asked = tiny_run();
    asked.data.path = options.data.path;
    asked.schedule.total_steps = 4;
    asked.model.vocabulary_size = 40'000;
    Recorder other;
    train(asked, other);
    EXPECT_EQ(other.start.vocabulary_size, 40'000);
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

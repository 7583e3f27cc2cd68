// A run whose loss is not finite. If these fail, somebody pays for days of NaN, or finds that their last good
// checkpoint was removed for one of a broken model.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "flashoptim/error.h"
#include "loop_fixture.h"
#include "trainer/run_folder.h"

namespace flashoptim::trainer {
namespace {

std::size_t rows(const std::filesystem::path& out) {
    const std::string text = read_all(out / "metrics.csv");
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) - 1;
}

struct Case {
    const char* name;
    Format format;
    bool release;
    std::int64_t accumulation;
    double learning_rate;
};

class NonFinite : public Loop, public testing::WithParamInterface<Case> {
protected:
    TrainOptions run() const {
        TrainOptions options = tiny_run("run");
        options.optimizer.format = GetParam().format;
        options.optimizer.gradient_release = GetParam().release;
        options.accumulation = GetParam().accumulation;
        options.clip_norm = 0.0;
        options.schedule.total_steps = 6;
        options.schedule.warmup_steps = 0;
        options.schedule.kind = ScheduleKind::kConstant;
        options.evaluation_interval = 100;
        return options;
    }
};

// Three good steps, then a learning rate that no model survives: with a checkpoint in every step, of
// which only the newest is kept.
TEST_P(NonFinite, EndsTheRunAndKeepsTheLastGoodCheckpoint) {
    TrainOptions options = run();
    options.schedule.total_steps = 3;
    options.checkpoint_interval = 1;
    options.kept_checkpoints = 1;
    Recorder good;
    train(options, good);
    const auto last = checkpoint_folder(options.out, 3);
    const std::string weights = read_all(last / "weights.safetensors");
    ASSERT_FALSE(weights.empty());

    options.schedule.total_steps = 6;
    options.schedule.peak = GetParam().learning_rate;
    options.resume = options.out;
    Recorder bad;
    const std::string said = message_of<NonFiniteLoss>([&] { train(options, bad); });
    EXPECT_NE(said.find("of step 4"), std::string::npos) << said;
    EXPECT_NE(said.find(last.string()), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos);
    EXPECT_TRUE(read_all(last / "weights.safetensors") == weights);
    EXPECT_EQ(newest_checkpoint_step(options.out), 3);
    EXPECT_EQ(rows(options.out), 4U);

    options.schedule.peak = 1e-3;  // and it goes on from there
    Recorder resumed;
    EXPECT_EQ(train(options, resumed).last_step, 6);
    EXPECT_EQ(rows(options.out), 6U);
}

// Without checkpoints between, the next step's loss tells; its row is the last one, and says so.
TEST_P(NonFinite, TheRowOfThatStepIsWritten) {
    TrainOptions options = run();
    options.schedule.peak = GetParam().learning_rate;
    Recorder recorder;
    const std::string said = message_of<NonFiniteLoss>([&] { train(options, recorder); });
    const std::size_t step = recorder.steps.size();
    EXPECT_NE(said.find("the loss of step " + std::to_string(step) + " is "), std::string::npos) << said;
    EXPECT_NE(said.find("no checkpoint was written"), std::string::npos) << said;
    ASSERT_EQ(rows(options.out), step);
    const std::string text = read_all(options.out / "metrics.csv");
    const std::string row = text.substr(text.rfind('\n', text.size() - 2) + 1);
    EXPECT_TRUE(row.starts_with(std::to_string(step) + ",nan,,") ||
                row.starts_with(std::to_string(step) + ",inf,,"))
        << row;
    EXPECT_EQ(newest_checkpoint_step(options.out), 0);
}

// The last step's loss is that before its update: the model behind it is seen in the evaluation, and
// no checkpoint is made of it.
TEST_P(NonFinite, TheModelOfTheLastStepIsNotSaved) {
    TrainOptions options = run();
    options.schedule.peak = GetParam().learning_rate;
    options.schedule.total_steps = 1;
    Recorder recorder;
    const std::string said = message_of<NonFiniteLoss>([&] { train(options, recorder); });
    EXPECT_NE(said.find("the validation loss of step 1"), std::string::npos) << said;
    EXPECT_EQ(rows(options.out), 1U);
    EXPECT_EQ(newest_checkpoint_step(options.out), 0);
}

// Weights whose squares are infinite make every norm of the model 0 or NaN: the loss can then be that of a
// model without weights, finite and the same in every step, while most of the gradient is not finite.
TEST_F(Loop, NoRunWhoseLossHidesABrokenModelEndsWell) {
    for (const Rule rule : {Rule::kAdamW, Rule::kSGD, Rule::kLion}) {
        for (const Format format : {Format::kNative, Format::kFloat32}) {
            for (const double learning_rate : {1e12, 1e24, 1e39, 1e300}) {
                for (const std::int64_t steps : {1, 6}) {
                    if (learning_rate == 1e12 && steps == 1) continue;  // its weights are large, and finite
                    TrainOptions options = tiny_run("run");
                    options.optimizer.rule = rule;
                    options.optimizer.format = format;
                    options.clip_norm = 0.0;
                    options.overwrite = true;
                    options.schedule.kind = ScheduleKind::kConstant;
                    options.schedule.peak = learning_rate;
                    options.schedule.total_steps = steps;
                    options.schedule.warmup_steps = 0;
                    options.evaluation_interval = 100;
                    Recorder recorder;
                    const std::string said = message_of<NonFiniteLoss>([&] { train(options, recorder); });
                    EXPECT_NE(said.find("no checkpoint was written"), std::string::npos)
                        << said << " with a learning rate of " << learning_rate;
                    EXPECT_EQ(newest_checkpoint_step(options.out), 0);
                }
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Runs, NonFinite,
                         testing::Values(Case{"native", Format::kNative, false, 1, 1e10},
                                         Case{"released", Format::kNative, true, 1, 1e10},
                                         Case{"accumulated", Format::kPaper, false, 2, 1e39},
                                         Case{"fp32", Format::kFloat32, false, 1, 1e39}),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace flashoptim::trainer

// A run and its data: going on with other data, and data that is changed while a run trains on it.
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data_fixture.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "loop_fixture.h"
#include "trainer/loop.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

// A checkpoint of a run with another JSON document.
void copy_with_document(const checkpoint::Checkpoint& saved, const fs::path& folder,
                        const std::string& document) {
    std::vector<std::vector<std::byte>> bytes;
    bytes.reserve(200);  // borrowed by the files
    std::vector<checkpoint::TensorFile> files;
    for (const std::string& name : saved.file_names()) {
        const checkpoint::SafetensorsFile file = saved.file(name);
        auto& tensors = files.emplace_back(checkpoint::TensorFile{name, {}, {}}).tensors;
        for (const checkpoint::TensorInfo& info : file.tensors()) {
            bytes.push_back(file.read(info));
            tensors.push_back({info.name, info.dtype, info.shape, bytes.back()});
        }
    }
    checkpoint::write(folder, document, files);
}

class LoopData : public Loop {
protected:
    TrainOptions run_of(std::int64_t steps, const std::string& out = "run") const {
        TrainOptions options = tiny_run(out);
        options.schedule.total_steps = steps;
        options.schedule.warmup_steps = 0;
        return options;
    }
    static std::string refusal(const TrainOptions& options) {
        Recorder recorder;
        return message_of<FormatError>([&] { train(options, recorder); });
    }
};

// Other data of the same length: the resumed run would go on without a word.
TEST_F(LoopData, ResumingWithOtherDataIsRefusedByName) {
    TrainOptions options = run_of(2);
    Recorder recorder;
    train(options, recorder);
    options.schedule.total_steps = 4;
    options.resume = options.out;
    std::string other = corpus();
    other[7] = other[7] == 'x' ? 'y' : 'x';
    folder_.write("corpus.txt", other);
    const std::string message = refusal(options);
    EXPECT_TRUE(contains(message, data_.string() + " is not what the training data had")) << message;
    EXPECT_TRUE(contains(message, "--allow-other-data")) << message;
    EXPECT_FALSE(fs::exists(options.out / "checkpoints" / "step-00000004"));

    options.allow_other_data = true;
    Recorder allowed;
    EXPECT_EQ(train(options, allowed).last_step, 4);
    ASSERT_EQ(allowed.notices.size(), 2U);  // and that there are more steps
    EXPECT_TRUE(contains(allowed.notices[0] + allowed.notices[1], data_.string())) << allowed.notices[0];

    // From here on the other data is the run's own.
    options.allow_other_data = false;
    options.schedule.total_steps = 5;
    Recorder rest;
    EXPECT_EQ(train(options, rest).last_step, 5);
    folder_.write("corpus.txt", corpus());
    options.schedule.total_steps = 6;
    EXPECT_TRUE(contains(refusal(options), data_.string()));
}

TEST_F(LoopData, MovedDataIsTheSame) {
    TrainOptions options = run_of(2);
    options.data.validation_path = folder_.write("held/out.txt", corpus());
    Recorder recorder;
    train(options, recorder);
    options.schedule.total_steps = 3;
    options.resume = options.out;
    fs::rename(data_, folder_.path() / "moved.txt");
    fs::rename(folder_.path() / "held", folder_.path() / "moved");
    options.data.path = folder_.path() / "moved.txt";
    options.data.validation_path = folder_.path() / "moved";
    Recorder rest;
    EXPECT_EQ(train(options, rest).last_step, 3);

    options.schedule.total_steps = 4;
    folder_.write("moved/out.txt", corpus() + ".");
    EXPECT_TRUE(contains(refusal(options), "moved/out.txt is not what the validation data had"));
}

// Checkpoints of a version that did not write what the data was: accepted, and said so.
TEST_F(LoopData, OlderCheckpointsAreAcceptedWithANotice) {
    TrainOptions options = run_of(2);
    Recorder recorder;
    const TrainResult made = train(options, recorder);
    const fs::path older = folder_.path() / "older";
    const auto write_older = [&](const std::string& tokens) {
        checkpoint::Checkpoint saved = checkpoint::Checkpoint::open(made.checkpoint);
        auto document = nlohmann::ordered_json::parse(saved.metadata_json());
        document["application"].erase("data");
        document["application"]["stream"]["training_tokens"] = tokens;
        copy_with_document(saved, older, document.dump());
    };
    write_older(std::to_string(recorder.start.training_tokens));
    options.out = folder_.path() / "new";
    options.resume = older;
    options.schedule.total_steps = 3;
    Recorder rest;
    EXPECT_EQ(train(options, rest).last_step, 3);
    std::string notices;
    for (const std::string& notice : rest.notices) notices += notice + "\n";
    EXPECT_TRUE(contains(notices, "does not say what its data was")) << notices;

    checkpoint::remove(older);
    write_older("123");
    options.out = folder_.path() / "third";
    EXPECT_TRUE(contains(refusal(options), "training_tokens is 123 there"));
}

// What others do to the data in the middle of a run.
class Disturbed : public Recorder {
public:
    Disturbed(std::int64_t step, std::function<void()> action) : step_(step), action_(std::move(action)) {}
    void on_step(const StepRecord& record) override {
        Recorder::on_step(record);
        if (record.step == step_) action_();
    }

private:
    std::int64_t step_;
    std::function<void()> action_;
};

// The run ends with one line, its last step is kept, and with the data restored it becomes the
// run that it would have been.
TEST_F(LoopData, DataChangedDuringTrainingEndsTheRunAndLosesNothing) {
    Recorder whole;
    const TrainResult expected = train(run_of(8, "whole"), whole);
    const auto truncate = [&] { fs::resize_file(data_, 10); };
    const auto change = [&] { folder_.write("corpus.txt", std::string(corpus().size(), 'x')); };
    const std::vector<std::pair<std::string, std::function<void()>>> disturbances = {{"truncated", truncate},
                                                                                     {"changed", change}};
    for (const auto& [name, disturb] : disturbances) {
        // Step 5 is the first that is evaluated: after step 3 a batch fails, after step 4 too, during
        // the evaluation of 5 the rest.
        for (const std::int64_t step : {1, 4}) {
            for (const std::int64_t accumulation : {1, 2}) {
                TrainOptions options = run_of(8, name + std::to_string(step * 10 + accumulation));
                options.accumulation = accumulation;
                Disturbed disturbed(step, disturb);
                const std::string message = message_of<IoError>([&] { train(options, disturbed); });
                EXPECT_TRUE(contains(message, data_.string())) << message;
                ASSERT_EQ(disturbed.checkpoints.size(), 1U) << name << step;
                EXPECT_EQ(disturbed.checkpoints[0].step, step);
                folder_.write("corpus.txt", corpus());
                options.resume = options.out;
                Recorder rest;
                const TrainResult actual = train(options, rest);
                EXPECT_EQ(rest.start.first_step, step + 1);
                if (accumulation == 1) {
                    for (const char* file : {"weights.safetensors", "optimizer.safetensors"}) {
                        EXPECT_TRUE(read_all(expected.checkpoint / file) ==
                                    read_all(actual.checkpoint / file));
                    }
                    EXPECT_EQ(comparable_metrics(options.out), comparable_metrics(folder_.path() / "whole"));
                }
            }
        }
    }
}

// Validation data alone: the step before the evaluation is kept.
TEST_F(LoopData, ValidationDataCutDuringTrainingKeepsTheStep) {
    TrainOptions options = run_of(8);
    options.data.validation_path = folder_.write("held.txt", corpus());
    Disturbed disturbed(3, [&] { fs::resize_file(options.data.validation_path, 3); });
    const std::string message = message_of<IoError>([&] { train(options, disturbed); });
    EXPECT_TRUE(contains(message, "held.txt was cut short")) << message;
    EXPECT_EQ(disturbed.steps.back().step, 5);
    EXPECT_FALSE(disturbed.steps.back().validation_loss.has_value());
    ASSERT_EQ(disturbed.checkpoints.size(), 1U);
    EXPECT_EQ(disturbed.checkpoints[0].step, 5);
    folder_.write("held.txt", corpus());
    options.resume = options.out;
    Recorder rest;
    EXPECT_EQ(train(options, rest).last_step, 8);
    EXPECT_EQ(rest.start.first_step, 6);
}

// Touching, appending and replacing leave the bytes that a run reads where they are.
TEST_F(LoopData, HarmlessChangesDoNotEndARun) {
    Recorder whole;
    const TrainResult expected = train(run_of(6, "whole"), whole);
    Disturbed disturbed(2, [&] { std::ofstream(data_, std::ios::app) << "more"; });
    const TrainResult appended = train(run_of(6, "appended"), disturbed);
    EXPECT_TRUE(read_all(expected.checkpoint / "weights.safetensors") ==
                read_all(appended.checkpoint / "weights.safetensors"));
    folder_.write("corpus.txt", corpus());
    Disturbed replaced(2, [&] {
        folder_.write("new.txt", "other");
        fs::rename(folder_.path() / "new.txt", data_);
    });
    const TrainResult kept = train(run_of(6, "replaced"), replaced);
    EXPECT_TRUE(read_all(expected.checkpoint / "weights.safetensors") ==
                read_all(kept.checkpoint / "weights.safetensors"));
}

}  // namespace
}  // namespace flashoptim::trainer

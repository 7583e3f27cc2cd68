// A run's checkpoint is an optimizer's: the core and LibTorch load it, and a run goes on from what earlier
// versions wrote. If these fail, a user's unfinished trainings are lost.
#include "trainer/run_checkpoint.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/libtorch_checkpoint.h"
#include "flashoptim/optimizer.h"
#include "temporary_folder.h"
#include "trainer/optimizers.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;

const fs::path kGolden = fs::path(FLASHOPTIM_GOLDEN_CHECKPOINTS) / "training_run";

// The model of the golden run, with other weights.
class GoldenModel : public Model {
public:
    GoldenModel() {
        register_parameter("embedding", torch::ones({32, 128}, torch::kBFloat16));
        register_parameter("norm", torch::ones({33}, torch::kBFloat16));
    }
    torch::Tensor forward(const torch::Tensor&, const torch::Tensor&) override { return {}; }
    std::int64_t autocast_copy_bytes() const override { return 0; }
};

class RunCheckpoint : public ::testing::Test {
protected:
    RunCheckpoint() : optimizer_(make_optimizer(TrainOptions().optimizer, 0.5, model_)) {}

    static RunFields fields() {
        TrainOptions options;
        options.model.preset = "llama-tiny";
        DataIdentity data;
        data.training.kind = "text";
        data.training_tokens = 1000;
        data.validation_tokens = 100;
        return run_fields(options, data, 1);
    }
    std::int64_t load(const fs::path& folder, const RunFields& wanted = fields()) {
        return load_run(folder, wanted, model_, *optimizer_,
                        [this](const std::string& line) { notices_ += line + "\n"; });
    }
    // Whether model and optimizer are those of the golden run's files, bit for bit.
    void expect_golden() {
        const auto saved = Checkpoint::open(kGolden);
        const auto weights = saved.file("weights"), states = saved.file("optimizer");
        std::size_t tensors = 0;
        for (const auto& item : model_.named_parameters()) {
            expect_same(item.value(), weights, item.key());
            EXPECT_EQ(optimizer_->step_count(item.value()), 3);
            EXPECT_TRUE(optimizer_->has_momentum(item.value()));
            for (const auto& [name, tensor] : optimizer_->state_tensors(item.value())) {
                expect_same(tensor, states, item.key() + "." + name);
                ++tensors;
            }
        }
        EXPECT_EQ(tensors, states.tensors().size());
        EXPECT_EQ(optimizer_->bad_elements(), 1);
    }
    static void expect_same(const torch::Tensor& ours, const checkpoint::SafetensorsFile& file,
                            const std::string& name) {
        const auto theirs = file.read(file.tensor(name));
        ASSERT_EQ(theirs.size(), ours.nbytes()) << name;
        EXPECT_EQ(std::memcmp(theirs.data(), ours.const_data_ptr(), theirs.size()), 0) << name;
    }

    TemporaryFolder folder_;
    GoldenModel model_;
    std::unique_ptr<libtorch::FlashOptimizer> optimizer_;
    std::string notices_;
};

TEST_F(RunCheckpoint, OfAnEarlierVersionLoads) {
    EXPECT_EQ(load(kGolden), 3);
    expect_golden();
    EXPECT_EQ(optimizer_->param_groups()[0].options().get_lr(), 0.5) << "the run's own";
    RunFields other = fields();
    other.stream[0].second = "77";
    EXPECT_NE(message_of<FormatError>([&] { load(kGolden, other); }).find("seed is 0 there and 77"),
              std::string::npos);
}

TEST_F(RunCheckpoint, OfAnEarlierVersionIsWrittenInTheFormatOfAll) {
    load(kGolden);
    const fs::path again = folder_.path() / "again";
    save_run(again, 3, fields(), model_, *optimizer_);
    for (const auto& w : model_.parameters()) {
        w.detach().zero_();
        optimizer_->load_state_tensors(w, {});
    }
    EXPECT_EQ(load(again), 3);
    expect_golden();
    const auto document = nlohmann::json::parse(Checkpoint::open(again).metadata_json());
    EXPECT_EQ(document.at("kind"), "flashoptim optimizer");
    EXPECT_EQ(document.at("application").at("step"), 3);
}

// The core and LibTorch, without a word of the trainer.
TEST_F(RunCheckpoint, IsLoadedByTheCoreAndByLibTorch) {
    load(kGolden);
    const fs::path again = folder_.path() / "again";
    save_run(again, 3, fields(), model_, *optimizer_);

    std::vector<std::uint16_t> embedding(32 * 128), norm(33);
    Optimizer core(Rule::kAdamW, default_hyperparameters(Rule::kAdamW));
    core.add_group(core.hyperparameters());
    core.add_parameter({embedding.data(), DType::kBFloat16, {32, 128}, {}}, "embedding");
    core.add_parameter({norm.data(), DType::kBFloat16, {33}, {}}, "norm", 1);
    const auto report = load_optimizer(core, again);
    EXPECT_TRUE(report.weights && report.hyperparameters && report.converted.empty());
    EXPECT_EQ(core.hyperparameters(0).weight_decay, 0.1);
    EXPECT_EQ(core.hyperparameters(1).weight_decay, 0.0);
    EXPECT_EQ(core.bad_elements(1), 1U);
    std::size_t id = 0;
    for (const auto& item : model_.named_parameters()) {
        const auto weight = core.stored_weight(id);
        EXPECT_EQ(std::memcmp(weight.bytes.data(), item.value().const_data_ptr(), weight.bytes.size()), 0);
        const auto states = core.state(id++);
        const auto ours = optimizer_->state_tensors(item.value());
        ASSERT_EQ(states.size(), ours.size());
        for (std::size_t n = 0; n < ours.size(); ++n) {
            EXPECT_EQ(states[n].name, ours[n].first);
            ASSERT_EQ(states[n].bytes.size(), ours[n].second.nbytes());
            EXPECT_EQ(
                std::memcmp(states[n].bytes.data(), ours[n].second.const_data_ptr(), states[n].bytes.size()),
                0)
                << ours[n].first;
        }
    }

    // What the core writes is no run, and the trainer says so.
    const fs::path of_the_core = folder_.path() / "core";
    save_optimizer(core, of_the_core);
    EXPECT_NE(message_of<FormatError>([&] { load(of_the_core); }).find("no checkpoint of a training run"),
              std::string::npos);
    // With the run's own fields it is one.
    const auto document = nlohmann::json::parse(Checkpoint::open(again).metadata_json());
    save_optimizer(core, of_the_core, {.application_json = document.at("application").dump()});
    EXPECT_EQ(load(of_the_core), 3);
    expect_golden();

    GoldenModel other;
    const auto theirs = make_optimizer(TrainOptions().optimizer, 0.5, other);
    libtorch::load_optimizer(*theirs, other.named_parameters(), again);
    for (const auto& item : other.named_parameters())
        EXPECT_TRUE(torch::equal(item.value(), model_.named_parameters()[item.key()]));
}

// A program may go on from the weights alone, but a run may not.
TEST_F(RunCheckpoint, WithoutWeightsIsRefused) {
    load(kGolden);
    const fs::path again = folder_.path() / "again";
    save_run(again, 3, fields(), model_, *optimizer_);
    const auto document = nlohmann::json::parse(Checkpoint::open(again).metadata_json());
    libtorch::save_optimizer(*optimizer_, model_.named_parameters(), again,
                             {.weights = false, .application_json = document.at("application").dump()});
    EXPECT_NE(message_of<FormatError>([&] { load(again); }).find("weights"), std::string::npos);
}

}  // namespace
}  // namespace flashoptim::trainer

// Checkpoints that earlier versions wrote, loaded by an optimizer of the core: they are compared with their
// own files, bit for bit. If these fail, a user's finished trainings cannot be gone on from.
#include <filesystem>

#include "../support/step_cases.h"
#include "flashoptim/checkpoint.h"
#include "support.h"

namespace flashoptim {

namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;
using checkpoint::TestFolder;

const fs::path kGolden = FLASHOPTIM_GOLDEN_CHECKPOINTS;

/// What is in a golden checkpoint, before it is loaded: other weights, and a step behind it.
class Before {
public:
    struct Place {
        const char* name;
        std::vector<std::int64_t> shape, strides;
        std::size_t group;
    };
    Before(const std::vector<Place>& places, const StorageOptions& storage)
        : optimizer(Rule::kAdamW, default_hyperparameters(Rule::kAdamW), options(storage)) {
        optimizer.add_group(optimizer.hyperparameters());
        weights.reserve(places.size());
        for (const auto& place : places) {
            weights.emplace_back(DType::kBFloat16, place.shape, place.strides).fill([] { return 1.5F; });
            optimizer.add_parameter(weights.back().view(), place.name, place.group);
        }
        step();
    }
    void step() {
        std::vector<Tensor> gradients;
        gradients.reserve(weights.size());
        for (std::size_t id = 0; id < weights.size(); ++id) {
            gradients.emplace_back(DType::kFloat32, optimizer.weight(id).shape).fill([] { return 0.25F; });
            optimizer.set_gradient(id, gradients.back().view());
        }
        optimizer.step();
        for (std::size_t id = 0; id < weights.size(); ++id) optimizer.clear_gradient(id);
    }

private:
    static OptimizerOptions options(const StorageOptions& storage) {
        OptimizerOptions made;
        made.storage = storage;
        made.threads = 1;
        return made;
    }

public:
    std::vector<Tensor> weights;
    Optimizer optimizer;
};

const std::vector<Before::Place> kOfTheCore = {{"matrix", {5, 70}, {}, 0},
                                               {"conv", {2, 3, 4, 5}, {60, 1, 15, 3}, 0},
                                               {"norm/scale", {33}, {}, 1},
                                               {"empty", {0, 4}, {}, 1}};
const std::vector<Before::Place> kOfTheRun = {{"embedding", {32, 128}, {}, 0}, {"norm", {33}, {}, 1}};
const StorageOptions kSmall{Format::kNative, 24, true, 0, 0};

std::vector<std::byte> copy(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

/// Whether the optimizer holds what is in the files, byte for byte, and nothing else is in them.
void expect_as_in(Optimizer& optimizer, const fs::path& folder) {
    const auto saved = Checkpoint::open(folder);
    const auto weights = saved.file("weights"), states = saved.file("optimizer");
    std::size_t tensors = 0;
    for (std::size_t id = 0; id < optimizer.parameter_count(); ++id) {
        const auto& name = optimizer.name(id);
        EXPECT_EQ(optimizer.step_count(id), 3) << name;
        EXPECT_TRUE(optimizer.has_momentum(id)) << name;
        EXPECT_EQ(copy(optimizer.stored_weight(id).bytes), weights.read(weights.tensor(name))) << name;
        for (const auto& tensor : optimizer.state(id)) {
            EXPECT_EQ(copy(tensor.bytes), states.read(states.tensor(name + "." + tensor.name)))
                << name << "." << tensor.name;
            ++tensors;
        }
    }
    EXPECT_EQ(tensors, states.tensors().size());
}

TEST(GoldenCheckpoints, OfTheCore) {
    Before model(kOfTheCore, kSmall);
    const auto report = load_optimizer(model.optimizer, kGolden / "optimizer");
    EXPECT_TRUE(report.weights);
    EXPECT_TRUE(report.hyperparameters);
    EXPECT_TRUE(report.converted.empty());
    expect_as_in(model.optimizer, kGolden / "optimizer");
    EXPECT_EQ(model.optimizer.hyperparameters(0).learning_rate, 0.01);
    EXPECT_EQ(model.optimizer.hyperparameters(0).weight_decay, 0.1);
    EXPECT_EQ(model.optimizer.hyperparameters(1).learning_rate, 0.02);
    EXPECT_EQ(model.optimizer.hyperparameters(1).initial_learning_rate, 0.02);
    model.step();
    EXPECT_EQ(model.optimizer.step_count(0), 4);
}

// The layout has stayed: what is written now has the tensors of then.
TEST(GoldenCheckpoints, OfTheCoreAreWrittenAgainAsTheyWere) {
    const TestFolder folder;
    Before model(kOfTheCore, kSmall);
    load_optimizer(model.optimizer, kGolden / "optimizer");
    save_optimizer(model.optimizer, folder / "again");
    for (const char* name : {"weights", "optimizer"}) {
        const auto then = Checkpoint::open(kGolden / "optimizer").file(name);
        const auto now = Checkpoint::open(folder / "again").file(name);
        ASSERT_EQ(now.tensors().size(), then.tensors().size());
        for (const auto& tensor : then.tensors())
            EXPECT_EQ(now.read(now.tensor(tensor.name, tensor.dtype, tensor.shape)), then.read(tensor));
    }
}

TEST(GoldenCheckpoints, OfATrainingRun) {
    Before model(kOfTheRun, {});
    const auto h = model.optimizer.hyperparameters(1);
    const auto report = load_optimizer(model.optimizer, kGolden / "training_run");
    EXPECT_TRUE(report.weights);
    EXPECT_FALSE(report.hyperparameters) << "it has none";
    EXPECT_TRUE(report.converted.empty());
    expect_as_in(model.optimizer, kGolden / "training_run");
    EXPECT_EQ(model.optimizer.bad_elements(0), 0U);
    EXPECT_EQ(model.optimizer.bad_elements(1), 1U);
    EXPECT_TRUE(model.optimizer.hyperparameters(1) == h);
    model.step();
    EXPECT_EQ(model.optimizer.step_count(1), 4);
}

// As any other checkpoint: encoded again for another format, refused by name where it does not fit.
TEST(GoldenCheckpoints, OfATrainingRunAreConvertedOrRefused) {
    Before fp32(kOfTheRun, {Format::kFloat32, 32, true, 0, 0}), same(kOfTheRun, {});
    EXPECT_EQ(load_optimizer(fp32.optimizer, kGolden / "training_run").converted.size(), 2U);
    load_optimizer(same.optimizer, kGolden / "training_run");
    for (const std::size_t id : {0, 1}) {
        EXPECT_EQ(fp32.optimizer.master(id), same.optimizer.master(id));
        EXPECT_EQ(fp32.optimizer.moment(id, 0), same.optimizer.moment(id, 0));
        EXPECT_EQ(fp32.optimizer.moment(id, 1), same.optimizer.moment(id, 1));
    }
    const auto refused = [](const std::string& part, const std::vector<Before::Place>& places) {
        Before model(places, {});
        const auto before = bytes_of(model.optimizer);
        expect_refused<FormatError>(part, [&] { load_optimizer(model.optimizer, kGolden / "training_run"); });
        EXPECT_TRUE(bytes_of(model.optimizer) == before) << part;
    };
    refused("parameter \"norm\" is not in this optimizer", {kOfTheRun[0]});
    refused("parameter \"more\" of this optimizer is not",
            {kOfTheRun[0], kOfTheRun[1], {"more", {2}, {}, 0}});
    refused("[32, 128]", {{"embedding", {32, 64}, {}, 0}, kOfTheRun[1]});
    refused("norm.error_bits", {kOfTheRun[0], {"norm", {34}, {}, 1}});
}

}  // namespace

}  // namespace flashoptim

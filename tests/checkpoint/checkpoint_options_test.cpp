// What a caller may choose when an optimizer is saved or loaded: a text of its own, hyperparameters that
// stay. If these fail, a program that keeps its own settings loses them, or cannot find its step again.
#include "../support/step_cases.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/json.h"
#include "support.h"

namespace flashoptim {

namespace {

using checkpoint::Checkpoint;
using checkpoint::TestFolder;

/// A trained optimizer of one vector.
class Trained {
public:
    explicit Trained(SGDHyperparameters h = {.learning_rate = 0.1, .momentum = 0.9}) : optimizer(h, one()) {
        optimizer.add_parameter(weight.view(), "weight");
        step(1.0F);
    }
    void step(float first) {
        Tensor gradient(DType::kFloat32, {40});
        gradient.fill([] { return 0.5F; });
        gradient.set(0, first);
        optimizer.set_gradient(0, gradient.view());
        optimizer.step();
        optimizer.clear_gradient(0);
    }
    std::vector<std::byte> everything() {
        auto all = bytes_of(optimizer);
        for (const auto number : {static_cast<std::uint64_t>(optimizer.step_count(0)),
                                  std::uint64_t{optimizer.has_momentum(0)}, optimizer.bad_elements(0)})
            for (int byte = 0; byte < 8; ++byte) all.push_back(std::byte((number >> (8 * byte)) & 255U));
        return all;
    }

private:
    static OptimizerOptions one() {
        OptimizerOptions options;
        options.threads = 1;
        return options;
    }

public:
    Tensor weight{DType::kBFloat16, {40}};
    SGD optimizer;
};

TEST(CheckpointOptions, TheApplicationsObjectIsKeptAndReadAgain) {
    const TestFolder folder;
    Trained trained, resumed;
    const std::string text = R"({"step": 7, "note": "\u00e9 \"x\"", "list": [1, {}]})";
    save_optimizer(trained.optimizer, folder / "saved", {.application_json = text});
    const auto saved = Checkpoint::open(folder / "saved");
    EXPECT_NE(saved.metadata_json().find(text), std::string::npos) << "byte for byte";
    const auto document = checkpoint::parse_json_object(saved.metadata_json(), "x");
    const auto* step = document.find("application")->find("step")->as<std::uint64_t>();
    ASSERT_NE(step, nullptr);
    EXPECT_EQ(*step, 7U);
    load_optimizer(resumed.optimizer, saved);
    EXPECT_TRUE(resumed.everything() == trained.everything());
}

TEST(CheckpointOptions, AnApplicationsTextThatIsNoObjectIsRefusedBeforeAnythingIsWritten) {
    const TestFolder folder;
    Trained trained;
    for (const char* text :
         {"7", "[]", "{", R"({}, "rule": "SGD")", R"({"a": 1, "a": 2})", "{\"a\": \"\xFF\"}"}) {
        expect_refused<InvalidArgument>("application_json", [&] {
            save_optimizer(trained.optimizer, folder / "saved", {.application_json = text});
        });
        EXPECT_FALSE(std::filesystem::exists(folder / "saved")) << text;
    }
}

TEST(CheckpointOptions, HyperparametersMayStay) {
    const TestFolder folder;
    Trained trained, other({.learning_rate = 0.5, .momentum = 0.5}), same;
    save_optimizer(trained.optimizer, folder / "saved");
    const auto h = other.optimizer.hyperparameters();
    const auto report = load_optimizer(other.optimizer, folder / "saved", {.hyperparameters = false});
    EXPECT_FALSE(report.hyperparameters);
    EXPECT_TRUE(report.converted.empty());
    EXPECT_TRUE(other.optimizer.hyperparameters() == h);
    EXPECT_TRUE(other.everything() == trained.everything());
    EXPECT_TRUE(load_optimizer(other.optimizer, folder / "saved").hyperparameters);
    EXPECT_TRUE(other.optimizer.hyperparameters() == trained.optimizer.hyperparameters());
}

// Hyperparameters that stay may need a moment that was not saved, or none.
TEST(CheckpointOptions, MomentsFollowTheHyperparametersThatStay) {
    const TestFolder folder;
    Trained with, without({.learning_rate = 0.1}), resumed;
    save_optimizer(without.optimizer, folder / "without");
    expect_refused<FormatError>("weight", [&] {
        load_optimizer(resumed.optimizer, folder / "without", {.convert = false, .hyperparameters = false});
    });
    const auto report = load_optimizer(resumed.optimizer, folder / "without", {.hyperparameters = false});
    EXPECT_EQ(report.converted, std::vector<std::string>{"weight"});
    EXPECT_FALSE(resumed.optimizer.has_momentum(0)) << "its first step fills it";
    EXPECT_EQ(resumed.optimizer.moment(0, 0), std::vector<float>(40, 0.0F));
    resumed.step(1.0F);
    EXPECT_EQ(resumed.optimizer.moment(0, 0)[3], 0.5F);

    save_optimizer(with.optimizer, folder / "with");
    Trained plain({.learning_rate = 0.1});
    load_optimizer(plain.optimizer, folder / "with", {.hyperparameters = false});
    EXPECT_TRUE(plain.optimizer.moment(0, 0).empty());
    EXPECT_EQ(plain.optimizer.master(0), with.optimizer.master(0));
}

TEST(CheckpointOptions, BadElementsAreCountedOn) {
    const TestFolder folder;
    Trained trained, resumed;
    trained.step(INFINITY);
    resumed.step(INFINITY);
    resumed.step(NAN);
    save_optimizer(trained.optimizer, folder / "saved");
    EXPECT_EQ(resumed.optimizer.bad_elements(0), 2U);
    load_optimizer(resumed.optimizer, folder / "saved");
    EXPECT_EQ(resumed.optimizer.bad_elements(0), 1U);
    resumed.step(NAN);
    EXPECT_EQ(resumed.optimizer.bad_elements(0), 2U);
}

}  // namespace

}  // namespace flashoptim

// Saved optimizers: a resumed run is the run that never stopped, foreign or damaged state is
// refused and nothing is touched by it. If these fail, an interrupted training is lost, or goes on
// with another model's state.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "../support/step_cases.h"
#include "flashoptim/checkpoint.h"

namespace flashoptim {

namespace {

namespace fs = std::filesystem;
using Extents = std::vector<std::int64_t>;

/// A new folder, removed with everything in it.
class OptimizerCheckpoint : public ::testing::Test {
protected:
    OptimizerCheckpoint() {
        std::string name = (fs::temp_directory_path() / "flashoptim-core-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder for the test");
        root_ = name;
    }
    ~OptimizerCheckpoint() override {
        std::error_code ignored;
        fs::remove_all(root_, ignored);
    }
    [[nodiscard]] fs::path folder() const { return root_ / "saved"; }

    fs::path root_;
};

struct ModelOptions {
    RuleCase rule = rule_cases()[4];
    StorageOptions storage{Format::kNative, 24, true, 0, 0};
    DType dtype = DType::kBFloat16;
    std::vector<Extents> strides = {{}, {}, {}, {}};
    std::vector<Extents> shapes = {{20, 70}, {3, 8, 5, 6}, {33}, {0, 4}};
    std::vector<std::string> names = {"blocks.0.weight", "conv", "norm/scale", "empty"};
    std::vector<std::size_t> order = {0, 1, 2, 3};  // in which parameters are added
};

/// A model of a few tensors with its optimizer. Gradients follow from the step and
/// the parameter's name alone.
class Model {
public:
    explicit Model(const ModelOptions& m = {})
        : options_(m), optimizer(m.rule.rule, m.rule.hyperparameters, optimizer_options(m)) {
        for (std::size_t n = 0; n < m.shapes.size(); ++n) {
            weights.emplace_back(m.dtype, m.shapes[n], m.strides[n]);
            Tensor row_major(m.dtype, m.shapes[n]);
            Noise noise(n);
            row_major.fill([&] { return noise.normal(); });
            copy_in_order(row_major.view(), weights[n].view().strides, weights[n].view().data);
        }
        for (const auto n : m.order) optimizer.add_parameter(weights[n].view(), m.names[n]);
    }
    void train(int first, int count) {
        for (int t = first; t < first + count; ++t) {
            std::vector<Tensor> gradients;
            for (const auto n : options_.order) {
                Noise noise(static_cast<std::uint64_t>(t) * 10 + n);
                gradients.emplace_back(DType::kFloat32, options_.shapes[n]).fill([&] {
                    return noise.normal();
                });
            }
            for (std::size_t id = 0; id < gradients.size(); ++id)
                optimizer.set_gradient(id, gradients[id].view());
            optimizer.set_learning_rate(0.01 / (1.0 + t));
            optimizer.step();
            for (std::size_t id = 0; id < gradients.size(); ++id) optimizer.clear_gradient(id);
        }
    }

private:
    static OptimizerOptions optimizer_options(const ModelOptions& m) {
        OptimizerOptions options;
        options.storage = m.storage;
        options.threads = 1;
        return options;
    }
    ModelOptions options_;

public:
    std::vector<Tensor> weights;
    Optimizer optimizer;
};

/// Everything that loading may change.
std::vector<std::byte> everything(Model& model) {
    auto all = bytes_of(model.optimizer);
    const auto append = [&](const auto& value) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&value);
        all.insert(all.end(), bytes, bytes + sizeof value);
    };
    for (std::size_t id = 0; id < model.optimizer.parameter_count(); ++id) {
        append(model.optimizer.step_count(id));
        append(model.optimizer.has_momentum(id));
    }
    append(model.optimizer.hyperparameters().learning_rate);
    append(model.optimizer.hyperparameters().beta1);
    return all;
}

/// The values of a tensor in memory order, brought into row-major order.
std::vector<float> row_major(const std::vector<float>& values, const TensorView& like) {
    std::vector<float> sorted(values.size());
    copy_in_order({const_cast<float*>(values.data()), DType::kFloat32, like.shape, like.strides},
                  row_major_strides(like.shape), sorted.data());
    return sorted;
}

/// Replaces `from` by `to` in the JSON of the checkpoint, which the checkpoint's own writer then writes anew.
void edit(const fs::path& folder, const std::string& from, const std::string& to) {
    const auto opened = checkpoint::Checkpoint::open(folder);
    auto json = opened.metadata_json();
    const auto place = json.find(from);
    ASSERT_NE(place, std::string::npos) << from << " is not in " << json;
    json.replace(place, from.size(), to);
    std::vector<checkpoint::TensorFile> files;
    std::vector<std::vector<std::byte>> bytes;
    bytes.reserve(100);
    for (const auto& name : opened.file_names()) {
        const auto file = opened.file(name);
        auto& tensors = files.emplace_back(checkpoint::TensorFile{name, {}}).tensors;
        for (const auto& tensor : file.tensors()) {
            bytes.push_back(file.read(tensor));
            tensors.push_back({tensor.name, tensor.dtype, tensor.shape, bytes.back()});
        }
    }
    checkpoint::write(folder, json, files);
}

}  // namespace

TEST_F(OptimizerCheckpoint, AResumedRunIsTheRunThatNeverStopped) {
    for (const auto& rule : rule_cases()) {
        for (const auto& storage : storage_cases(rule.rule)) {
            // Every storage with one rule, every rule with one storage of each format:
            // each case waits for the disk.
            const bool usual = storage.weight == DType::kBFloat16 && storage.options.master_weight_bits == 24;
            if (rule.rule != Rule::kAdamW && !usual) continue;
            ModelOptions m;
            m.rule = rule;
            m.storage = storage.options;
            m.dtype = storage.weight;
            Model whole(m), stopped(m), resumed(m);
            whole.train(0, 5);
            stopped.train(0, 3);
            save_optimizer(stopped.optimizer, folder());
            const auto report = load_optimizer(resumed.optimizer, folder());
            EXPECT_TRUE(report.weights);
            EXPECT_TRUE(report.converted.empty());
            EXPECT_TRUE(everything(resumed) == everything(stopped));
            resumed.train(3, 2);
            EXPECT_TRUE(everything(resumed) == everything(whole)) << rule.name << " " << storage.name;
            EXPECT_EQ(resumed.optimizer.step_count(3), 5) << "of the empty tensor";
        }
    }
}

TEST_F(OptimizerCheckpoint, ParametersAreFoundByNameInAnyOrder) {
    ModelOptions other;
    other.order = {2, 3, 0, 1};
    Model stopped, resumed(other);
    stopped.train(0, 2);
    save_optimizer(stopped.optimizer, folder());
    load_optimizer(resumed.optimizer, folder());
    for (std::size_t id = 0; id < 4; ++id) {
        EXPECT_TRUE(bytes_of(resumed.optimizer, id) == bytes_of(stopped.optimizer, other.order[id]));
    }
}

TEST_F(OptimizerCheckpoint, WeightsAreOptional) {
    Model stopped, resumed;
    stopped.train(0, 2);
    const auto with = save_optimizer(stopped.optimizer, folder());
    const auto without = save_optimizer(stopped.optimizer, folder(), {.weights = false});
    EXPECT_LT(without, with);
    const auto before = resumed.weights[0].bytes();
    EXPECT_FALSE(load_optimizer(resumed.optimizer, folder()).weights);
    EXPECT_TRUE(resumed.weights[0].bytes() == before);
    EXPECT_EQ(resumed.optimizer.moment(0, 0), stopped.optimizer.moment(0, 0));

    save_optimizer(stopped.optimizer, folder());
    EXPECT_FALSE(load_optimizer(resumed.optimizer, folder(), {.weights = false}).weights);
    EXPECT_TRUE(resumed.weights[0].bytes() == before);
    EXPECT_TRUE(load_optimizer(resumed.optimizer, folder()).weights);
    EXPECT_TRUE(resumed.weights[0].bytes() == stopped.weights[0].bytes());
}

// The size of a checkpoint is part of the claim: what lies in memory and little more.
TEST_F(OptimizerCheckpoint, CostsWhatTheStateCosts) {
    Tensor weight(DType::kBFloat16, {512, 1024});
    AdamW optimizer;
    optimizer.add_parameter(weight.view(), "weight");
    const auto bytes = save_optimizer(optimizer, folder());
    EXPECT_LE(static_cast<double>(bytes), 512.0 * 1024.0 * 5.125 + 8192.0);
}

TEST_F(OptimizerCheckpoint, StateOfAnotherStrideOrderIsEncodedAgain) {
    for (const auto& storage : storage_cases()) {
        if (storage.options.master_weight_bits == 16 || storage.weight == DType::kFloat16) continue;
        ModelOptions row, last;
        row.storage = last.storage = storage.options;
        row.dtype = last.dtype = storage.weight;
        last.strides = {{1, 20}, {240, 1, 48, 8}, {}, {}};
        Model stopped(row), resumed(last);
        stopped.train(0, 4);
        save_optimizer(stopped.optimizer, folder());
        expect_refused<FormatError>("stride order",
                                    [&] { load_optimizer(resumed.optimizer, folder(), {.convert = false}); });
        const auto report = load_optimizer(resumed.optimizer, folder());
        EXPECT_EQ(report.converted, (std::vector<std::string>{"blocks.0.weight", "conv"}));
        for (std::size_t id = 0; id < 3; ++id) {
            const auto view = resumed.optimizer.weight(id);
            EXPECT_EQ(row_major(resumed.optimizer.master(id), view), stopped.optimizer.master(id))
                << "weights only change places";
            const auto ours = row_major(resumed.optimizer.moment(id, 0), view),
                       saved = stopped.optimizer.moment(id, 0);
            const auto largest = static_cast<float>(test::largest_magnitude(saved));
            for (std::size_t n = 0; n < ours.size(); ++n) {
                // To nearest: half a cell, whose width is at most 4 / 127 of a scale at most 1.11 times
                // (native) the group's largest.
                ASSERT_NEAR(ours[n], saved[n], largest * 1.11F * 2.0F / 127.0F) << storage.name;
            }
        }
        // And back: what was encoded to nearest decodes to what is there, and the
        // corrections are the first ones.
        resumed.train(4, 1);
        save_optimizer(resumed.optimizer, folder());
        Model back(row);
        load_optimizer(back.optimizer, folder());
        EXPECT_EQ(back.optimizer.master(1),
                  row_major(resumed.optimizer.master(1), resumed.optimizer.weight(1)));
    }
}

TEST_F(OptimizerCheckpoint, StateOfAnotherFormatIsEncodedAgain) {
    std::vector<StorageCase> of_bfloat16;
    for (auto& storage : storage_cases()) {
        if (storage.weight == DType::kBFloat16) of_bfloat16.push_back(storage);
    }
    for (const auto& from : of_bfloat16) {
        ModelOptions m;
        m.storage = from.options;
        Model stopped(m);
        stopped.train(0, 3);
        save_optimizer(stopped.optimizer, folder());
        for (const auto& to : of_bfloat16) {
            ModelOptions n;
            n.storage = to.options;
            Model resumed(n);
            const auto report = load_optimizer(resumed.optimizer, folder());
            if (from.name == to.name) {
                EXPECT_TRUE(report.converted.empty());
            }
            const auto ours = resumed.optimizer.master(0), saved = stopped.optimizer.master(0);
            // A master of 16 bits is within 2^-8, with a correction within 2^-16
            // (paper: 1.541e-5) of the other.
            const bool coarse = to.options.master_weight_bits < 24;
            for (std::size_t e = 0; e < ours.size(); ++e) {
                ASSERT_NEAR(ours[e], saved[e], std::abs(saved[e]) * (coarse ? 0x1.02p-8F : 1.6e-5F))
                    << from.name << " to " << to.name;
            }
            EXPECT_EQ(resumed.optimizer.step_count(0), 3);
            const auto first = resumed.optimizer.moment(0, 0), expected = stopped.optimizer.moment(0, 0);
            const auto largest = static_cast<float>(test::largest_magnitude(expected));
            for (std::size_t e = 0; e < first.size(); ++e)
                ASSERT_NEAR(first[e], expected[e], largest * 1.11F * 2.0F / 127.0F);
            resumed.train(3, 1);
        }
    }
    // Native 24 bit into fp32 moments and native 32 bit loses nothing at all.
    ModelOptions exact;
    exact.storage = {Format::kFloat32, 32, true, 0, 0};
    Model stopped, resumed(exact);
    stopped.train(0, 3);
    save_optimizer(stopped.optimizer, folder());
    load_optimizer(resumed.optimizer, folder());
    EXPECT_EQ(resumed.optimizer.master(0), stopped.optimizer.master(0));
    EXPECT_EQ(resumed.optimizer.moment(0, 0), stopped.optimizer.moment(0, 0));
    EXPECT_EQ(resumed.optimizer.moment(0, 1), stopped.optimizer.moment(0, 1));
}

TEST_F(OptimizerCheckpoint, HyperparametersOfEveryGroupComeBack) {
    const auto make = [](std::vector<Tensor>& weights, double learning_rate) {
        AdamW optimizer({.learning_rate = learning_rate});
        Hyperparameters h;
        h.learning_rate = learning_rate * 3;
        h.weight_decay = 0.1;
        h.maximize = true;
        optimizer.add_group(h);
        weights.emplace_back(DType::kBFloat16, Extents{40}).fill([] { return 1.0F; });
        weights.emplace_back(DType::kBFloat16, Extents{50}).fill([] { return 1.0F; });
        optimizer.add_parameter(weights[0].view(), "a");
        optimizer.add_parameter(weights[1].view(), "b", 1);
        return optimizer;
    };
    std::vector<Tensor> of_first, of_second;
    auto first = make(of_first, 0.1), second = make(of_second, 0.3);
    first.set_learning_rate(1, 0.0625);
    save_optimizer(first, folder());
    load_optimizer(second, folder());
    EXPECT_EQ(second.hyperparameters(0).learning_rate, 0.1);
    EXPECT_EQ(second.hyperparameters(1).learning_rate, 0.0625);
    EXPECT_EQ(second.hyperparameters(1).initial_learning_rate, 0.1 * 3);
    EXPECT_TRUE(second.hyperparameters(1).maximize);
}

// Momentum that the checkpoint has and the new optimizer was made without.
TEST_F(OptimizerCheckpoint, MomentumBuffersFollowTheSavedHyperparameters) {
    ModelOptions with, without;
    with.rule = rule_cases()[1];
    without.rule = rule_cases()[0];
    Model stopped(with), resumed(without), third(with);
    stopped.train(0, 2);
    save_optimizer(stopped.optimizer, folder());
    load_optimizer(resumed.optimizer, folder());
    EXPECT_TRUE(everything(resumed) == everything(stopped));
    Model plain(without);
    plain.train(0, 2);
    third.train(0, 1);
    save_optimizer(plain.optimizer, folder());
    load_optimizer(third.optimizer, folder());
    EXPECT_TRUE(everything(third) == everything(plain));
}

TEST_F(OptimizerCheckpoint, ForeignStateIsRefusedAndNothingIsTouched) {
    Model saved;
    saved.train(0, 2);
    save_optimizer(saved.optimizer, folder());
    const auto refused = [&](const std::string& part, const std::function<void(ModelOptions&)>& change) {
        ModelOptions m;
        change(m);
        Model model(m);
        model.train(0, 1);
        const auto before = everything(model);
        expect_refused<FormatError>(part, [&] { load_optimizer(model.optimizer, folder()); });
        EXPECT_TRUE(everything(model) == before) << part;
    };
    refused("holds the state of AdamW and this optimizer is Lion", [](auto& m) { m.rule = rule_cases()[5]; });
    refused("parameter \"blocks.0.weight\" is not in this optimizer",
            [](auto& m) { m.names[0] = "blocks.1.weight"; });
    refused("parameter \"conv\" has shape [3, 8, 5, 6] and here [3, 8, 6, 5]",
            [](auto& m) { m.shapes[1] = {3, 8, 6, 5}; });
    refused("is bfloat16 and here float16", [](auto& m) { m.dtype = DType::kFloat16; });
    refused("parameter \"more\" of this optimizer is not in the checkpoint", [](auto& m) {
        m.shapes.push_back({5});
        m.names.push_back("more");
        m.strides.emplace_back();
        m.order.push_back(4);
    });

    Model groups;
    groups.optimizer.add_group(groups.optimizer.hyperparameters());
    expect_refused<FormatError>("1 parameter groups", [&] { load_optimizer(groups.optimizer, folder()); });

    // The same part of another place.
    Tensor part(DType::kBFloat16, {20, 70});
    AdamW sharded;
    sharded.add_parameter(part.view(), "blocks.0.weight", 0, Shard{{40, 70}, {}, {20, 0}});
    AdamW whole;
    Tensor weight(DType::kBFloat16, {20, 70});
    whole.add_parameter(weight.view(), "blocks.0.weight");
    save_optimizer(sharded, root_ / "shard");
    expect_refused<FormatError>("same shard", [&] { load_optimizer(whole, root_ / "shard"); });
    EXPECT_NO_THROW(load_optimizer(sharded, root_ / "shard"));
}

TEST_F(OptimizerCheckpoint, DamagedStateIsRefusedAndNothingIsTouched) {
    Model model;
    model.train(0, 2);
    const auto before = everything(model);
    const auto refused = [&](const std::string& part, const std::string& from, const std::string& to) {
        Model saved;
        saved.train(0, 3);
        save_optimizer(saved.optimizer, folder());
        edit(folder(), from, to);
        expect_refused<FormatError>(part, [&] { load_optimizer(model.optimizer, folder()); });
        EXPECT_TRUE(everything(model) == before) << part;
    };
    refused("not a saved optimizer", "flashoptim optimizer", "something else");
    refused("layout 2", "\"version\": 1", "\"version\": 2");
    refused("does not know", "\"AdamW\"", "\"Sophia\"");
    refused("does not know", "\"native\"", "\"nf4\"");
    refused("\"steps\"", "\"steps\": 3", "\"steps\": -3");
    refused("\"steps\"", "\"steps\": 3", "\"steps\": 3.5");
    refused("\"steps\"", "\"steps\": 3", "\"steps\": 18446744073709551615");
    refused("has no \"beta2\"", "\"beta2\"", "\"gamma\"");
    refused("beta1", "\"beta1\": 0.9", "\"beta1\": 1.9");
    refused("master_weight_bits is 25", "\"master_weight_bits\": 24", "\"master_weight_bits\": 25");
    refused("error_bits", "\"master_weight_bits\": 24", "\"master_weight_bits\": 32");
    refused("group 7", "\"group\": 0", "\"group\": 7");
    refused("is there twice", "\"name\": \"conv\"", "\"name\": \"norm/scale\"");
    refused("another part", "\"whole_numel\": 1400", "\"whole_numel\": 1401");
    refused("\"quantized\"", "\"quantized\": true", "\"quantized\": 1");

    // A code that the format never writes.
    Model saved;
    saved.train(0, 3);
    saved.optimizer.state(0)[1].bytes[77] = std::byte{0x80};
    save_optimizer(saved.optimizer, folder());
    expect_refused<FormatError>("element 77 has code -128",
                                [&] { load_optimizer(model.optimizer, folder()); });
    expect_refused<FormatError>("blocks.0.weight", [&] { load_optimizer(model.optimizer, folder()); });
    EXPECT_TRUE(everything(model) == before);
    // An infinite scale of the second moment.
    saved.optimizer.state(0)[1].bytes[77] = std::byte{0};
    const std::uint16_t infinity = 0x7f80;
    std::memcpy(saved.optimizer.state(0)[4].bytes.data() + 6, &infinity, sizeof infinity);
    save_optimizer(saved.optimizer, folder());
    expect_refused<FormatError>("scale 3", [&] { load_optimizer(model.optimizer, folder()); });
    EXPECT_TRUE(everything(model) == before);

    // A file cut short, and none at all.
    save_optimizer(model.optimizer, folder());
    fs::resize_file(folder() / "optimizer.safetensors", 1000);
    expect_refused<FormatError>("optimizer.safetensors", [&] { load_optimizer(model.optimizer, folder()); });
    expect_refused<IoError>("nothing-here", [&] { load_optimizer(model.optimizer, root_ / "nothing-here"); });
    EXPECT_TRUE(everything(model) == before);
}

// A run in the paper's format goes on from any state that the format writes: a group maximum of 65520 or
// more has an infinite fp16 scale, and where gradients are not checked a NaN stays in an fp32 moment. The
// native format writes neither.
TEST_F(OptimizerCheckpoint, ThePapersInfinitiesComeBack) {
    for (const bool quantize : {true, false}) {
        const auto make = [&](Tensor& weight, Format format) {
            OptimizerOptions options;
            options.storage = {format, 24, quantize, 0, 0};
            options.check_gradients = false;
            options.threads = 1;
            Optimizer optimizer(Rule::kAdamW, {}, options);
            optimizer.add_parameter(weight.view(), "weight");
            return optimizer;
        };
        Tensor weight(DType::kBFloat16, {4, 64}), gradient(DType::kFloat32, {4, 64});
        auto again = weight, other = weight;
        gradient.fill([] { return 1.0F; });
        gradient.set(70, quantize ? 1e7F : NAN);
        auto stopped = make(weight, Format::kPaper), resumed = make(again, Format::kPaper);
        stopped.set_gradient(0, gradient.view());
        stopped.step();
        EXPECT_FALSE(std::isfinite(stopped.moment(0, 1)[70]));
        save_optimizer(stopped, folder());
        load_optimizer(resumed, folder());
        EXPECT_TRUE(bytes_of(resumed) == bytes_of(stopped)) << quantize;
        auto native = make(other, Format::kNative);
        expect_refused<FormatError>("cannot be kept in the format",
                                    [&] { load_optimizer(native, folder()); });
    }
}

TEST_F(OptimizerCheckpoint, TwoParametersOfOneNameAreRefusedBeforeAnythingIsWritten) {
    ModelOptions m;
    m.names[2] = "conv";
    Model model(m);
    expect_refused<InvalidArgument>("\"conv\"", [&] { save_optimizer(model.optimizer, folder()); });
    EXPECT_FALSE(fs::exists(folder()));
}

}  // namespace flashoptim

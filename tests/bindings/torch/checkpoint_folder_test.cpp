// LibTorch optimizers in checkpoint folders: a run goes on from a folder of its own, of the core and of
// earlier versions, and the core goes on from LibTorch's. If these fail, a training cannot move from one
// binding to another, or an interrupted one is lost.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "flashoptim/libtorch_checkpoint.h"
#include "flashoptim/optimizer.h"
#include "support.h"

namespace flashoptim::libtorch {
namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;
using checkpoint::SafetensorsFile;

const fs::path kGolden = FLASHOPTIM_GOLDEN_CHECKPOINTS;

class CheckpointFolder : public ::testing::Test {
protected:
    CheckpointFolder() {
        std::string name = (fs::temp_directory_path() / "flashoptim-torch-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder for the test");
        root_ = name;
    }
    ~CheckpointFolder() override {
        std::error_code ignored;
        fs::remove_all(root_, ignored);
    }
    [[nodiscard]] fs::path folder() const { return root_ / "saved"; }

private:
    fs::path root_;
};

ParameterNames names_of(const Tensors& weights) {
    ParameterNames names;
    for (std::size_t n = 0; n < weights.size(); ++n) names.insert("w." + std::to_string(n), weights[n]);
    return names;
}

Tensors copies(const Tensors& weights, double factor = 1.0) {
    Tensors result;
    for (const auto& w : weights) {
        auto copy = torch::empty_strided(w.sizes(), w.strides(), w.options().requires_grad(false));
        copy.copy_(w.detach() * factor);
        result.push_back(copy.requires_grad_());
    }
    return result;
}

/// Of another memory order, too, and without elements.
Tensors weights_of(std::uint64_t seed, torch::Dtype dtype = torch::kBFloat16) {
    auto weights = parameters(seed, dtype);
    weights.push_back(
        parameter(torch::randn({8, 5, 3, 3}).contiguous(torch::MemoryFormat::ChannelsLast), dtype));
    weights.push_back(parameter(torch::randn({0, 4}), dtype));
    return weights;
}

void train(FlashOptimizer& optimizer, const Tensors& weights, int from, int to) {
    for (int step = from; step < to; ++step) {
        set_gradients(weights, step);
        optimizer.step();
    }
}

/// The core's optimizer over copies of the same weights, with the same hyperparameters.
class OfTheCore {
public:
    OfTheCore(FlashOptimizer& like, const Tensors& weights, Format format)
        : weights_(copies(weights, 0.5)), optimizer(like.rule(), hyperparameters(like), options(format)) {
        for (std::size_t n = 0; n < weights_.size(); ++n) {
            optimizer.add_parameter(view_of(weights_[n]), "w." + std::to_string(n));
        }
    }
    void train(int from, int to) {
        for (int step = from; step < to; ++step) {
            set_gradients(weights_, step);
            for (std::size_t n = 0; n < weights_.size(); ++n)
                optimizer.set_gradient(n, view_of(weights_[n].grad()));
            optimizer.step();
        }
    }
    [[nodiscard]] const Tensors& weights() const { return weights_; }

private:
    static TensorView view_of(const torch::Tensor& tensor) {
        const auto dtype = tensor.scalar_type() == torch::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
        return {tensor.data_ptr(), dtype, tensor.sizes().vec(), tensor.strides().vec()};
    }
    static Hyperparameters hyperparameters(FlashOptimizer& like) {
        return dynamic_cast<const FlashOptions&>(like.param_groups()[0].options()).hyperparameters();
    }
    static OptimizerOptions options(Format format) {
        OptimizerOptions made;
        made.storage = {format, 24, true, 0, 0};
        made.threads = 1;
        return made;
    }
    Tensors weights_;

public:
    Optimizer optimizer;
};

std::string bytes_of(const torch::Tensor& tensor) {
    const auto here = tensor.detach().to(torch::kCPU);
    const auto count = static_cast<std::size_t>(here.numel()) * here.element_size();
    return {static_cast<const char*>(here.const_data_ptr()), count};
}
std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Whether both hold the same bits.
::testing::AssertionResult same_as_core(FlashOptimizer& ours, const Tensors& weights, OfTheCore& core) {
    for (std::size_t n = 0; n < weights.size(); ++n) {
        const auto failed = [n] { return ::testing::AssertionFailure() << "parameter " << n << ": "; };
        if (bytes_of(weights[n]) != bytes_of(core.weights()[n])) return failed() << "weights differ";
        if (ours.step_count(weights[n]) != core.optimizer.step_count(n)) return failed() << "step counts";
        if (static_cast<std::uint64_t>(ours.bad_elements(weights[n])) != core.optimizer.bad_elements(n))
            return failed() << "bad elements";
        auto theirs = core.optimizer.state(n);
        std::erase_if(theirs, [](const StateTensor& tensor) { return tensor.bytes.empty(); });
        auto mine = ours.state_tensors(weights[n]);
        std::erase_if(mine, [](const auto& tensor) { return tensor.second.numel() == 0; });
        if (mine.size() != theirs.size()) return failed() << "states have other tensors";
        for (std::size_t t = 0; t < mine.size(); ++t) {
            if (mine[t].first != theirs[t].name || bytes_of(mine[t].second) != text_of(theirs[t].bytes))
                return failed() << mine[t].first << " differs";
        }
    }
    return ::testing::AssertionSuccess();
}

TEST_F(CheckpointFolder, ResumesBitForBit) {
    for_each_kind([this](Rule rule, Format format) {
        const auto whole = weights_of(7);
        const auto a = make_optimizer(rule, format, whole);
        train(*a, whole, 0, 3);
        save_optimizer(*a, names_of(whole), folder());
        const auto resumed = copies(whole, 0.25);
        const auto b = make_optimizer(rule, format, resumed, /*lr=*/0.5);  // the checkpoint's win
        const auto report = load_optimizer(*b, names_of(resumed), folder());
        EXPECT_TRUE(report.weights && report.hyperparameters && report.converted.empty());
        EXPECT_TRUE(same_everything(*a, whole, *b, resumed));
        EXPECT_EQ(saved(*a), saved(*b)) << "options, counts and states";
        train(*a, whole, 3, 5);
        train(*b, resumed, 3, 5);
        EXPECT_TRUE(same_everything(*a, whole, *b, resumed));
    });
}

TEST_F(CheckpointFolder, TheCoreGoesOnFromLibTorchs) {
    for_each_kind([this](Rule rule, Format format) {
        const auto weights = weights_of(8);
        const auto ours = make_optimizer(rule, format, weights);
        train(*ours, weights, 0, 3);
        save_optimizer(*ours, names_of(weights), folder());
        OfTheCore core(*ours, weights, format);
        const auto report = flashoptim::load_optimizer(core.optimizer, folder());
        EXPECT_TRUE(report.weights && report.hyperparameters && report.converted.empty());
        EXPECT_TRUE(same_as_core(*ours, weights, core));
        train(*ours, weights, 3, 5);
        core.train(3, 5);
        EXPECT_TRUE(same_as_core(*ours, weights, core));
    });
}

TEST_F(CheckpointFolder, LibTorchGoesOnFromTheCores) {
    for_each_kind([this](Rule rule, Format format) {
        const auto weights = weights_of(9);
        const auto ours = make_optimizer(rule, format, weights);
        OfTheCore core(*ours, weights, format);
        core.train(0, 3);
        save_optimizer(core.optimizer, folder());
        const auto report = load_optimizer(*ours, names_of(weights), folder());
        EXPECT_TRUE(report.weights && report.hyperparameters && report.converted.empty());
        EXPECT_TRUE(same_as_core(*ours, weights, core));
        train(*ours, weights, 3, 5);
        core.train(3, 5);
        EXPECT_TRUE(same_as_core(*ours, weights, core));
    });
}

// The same state gives the same files, whoever writes them.
TEST_F(CheckpointFolder, BothWriteTheSameFiles) {
    auto weights = weights_of(10);
    weights.pop_back();  // has_momentum of what has no elements says nothing
    const auto ours = make_optimizer(Rule::kAdamW, Format::kNative, weights);
    OfTheCore core(*ours, weights, Format::kNative);
    core.train(0, 2);
    save_optimizer(core.optimizer, folder());
    load_optimizer(*ours, names_of(weights), folder());
    const auto read = [this](const char* name) {
        std::ifstream file(folder() / name, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(file), {});
    };
    const char* const names[] = {"metadata.json", "weights.safetensors", "optimizer.safetensors",
                                 "checkpoint.json"};
    std::vector<std::string> of_the_core;
    for (const auto* name : names) of_the_core.push_back(read(name));
    save_optimizer(*ours, names_of(weights), folder());
    for (std::size_t n = 0; n < std::size(names); ++n) EXPECT_EQ(read(names[n]), of_the_core[n]) << names[n];
}

TEST_F(CheckpointFolder, AParameterWithoutAStateStaysOne) {
    const auto weights = weights_of(11);
    const auto ours = make_optimizer(Rule::kAdamW, Format::kNative, weights);
    set_gradients(weights, 0);
    weights[1].mutable_grad().reset();
    ours->step();
    save_optimizer(*ours, names_of(weights), folder());
    const auto resumed = copies(weights, 0.5);
    const auto other = make_optimizer(Rule::kAdamW, Format::kNative, resumed);
    train(*other, resumed, 5, 6);
    load_optimizer(*other, names_of(resumed), folder());
    EXPECT_TRUE(other->state_tensors(resumed[1]).empty());
    EXPECT_TRUE(same_everything(*ours, weights, *other, resumed));

    OfTheCore core(*ours, weights, Format::kNative);
    core.train(3, 4);
    flashoptim::load_optimizer(core.optimizer, folder());
    EXPECT_EQ(core.optimizer.step_count(1), 0);
    EXPECT_FALSE(core.optimizer.has_momentum(1));
    EXPECT_EQ(core.optimizer.moment(1, 0), std::vector<float>(33, 0.0F));
    EXPECT_EQ(bytes_of(core.weights()[1]), bytes_of(weights[1]));
    train(*ours, weights, 1, 3);
    core.train(1, 3);
    EXPECT_TRUE(same_as_core(*ours, weights, core));
}

TEST_F(CheckpointFolder, EachGroupKeepsItsOwnAndOtherOptionsStay) {
    const auto make_groups = [](const Tensors& w, double lr, NonFinite policy) {
        std::vector<torch::optim::OptimizerParamGroup> groups;
        groups.emplace_back(Tensors{w[0]}, std::make_unique<AdamWOptions>(
                                               AdamWOptions(lr).decouple_lr(true).nonfinite(policy)));
        groups.emplace_back(Tensors{w[1]}, std::make_unique<AdamWOptions>(
                                               AdamWOptions(lr).betas({0.5, 0.6}).nonfinite(policy)));
        return groups;
    };
    const auto whole = parameters(7, torch::kBFloat16);
    AdamW a(make_groups(whole, 1e-3, NonFinite::kSkipElement), AdamWOptions());
    whole[0].mutable_grad() =
        torch::full(whole[0].sizes(), std::numeric_limits<float>::quiet_NaN()).to(torch::kBFloat16);
    a.step();
    a.param_groups()[0].options().set_lr(5e-4);
    save_optimizer(a, names_of(whole), folder());
    const auto resumed = copies(whole);
    AdamW b(make_groups(resumed, 1.0, NonFinite::kSkipStep), AdamWOptions());
    EXPECT_FALSE(load_optimizer(b, names_of(resumed), folder(), {.hyperparameters = false}).hyperparameters);
    EXPECT_EQ(b.param_groups()[0].options().get_lr(), 1.0);
    EXPECT_TRUE(load_optimizer(b, names_of(resumed), folder()).hyperparameters);
    const auto options = [](const AdamW& optimizer, std::size_t g) {
        return dynamic_cast<const AdamWOptions&>(optimizer.param_groups()[g].options());
    };
    for (const std::size_t g : {0, 1}) {
        EXPECT_TRUE(options(a, g).hyperparameters() == options(b, g).hyperparameters());
        EXPECT_EQ(options(b, g).nonfinite(), NonFinite::kSkipStep);
    }
    EXPECT_EQ(options(b, 0).initial_lr(), 1e-3);
    EXPECT_EQ(b.bad_elements(), whole[0].numel());
}

// State of another format or memory order is encoded again; the masters stay what they are.
TEST_F(CheckpointFolder, IsConverted) {
    const auto weights = weights_of(12);
    const auto a = make_optimizer(Rule::kAdamW, Format::kNative, weights);
    train(*a, weights, 0, 3);
    save_optimizer(*a, names_of(weights), folder());
    auto others = copies(weights);
    others[4] = parameter(weights[4].contiguous(), torch::kBFloat16);
    const auto b = make_optimizer(Rule::kAdamW, Format::kFloat32, others);
    EXPECT_TRUE(contains(
        message_of<FormatError>([&] { load_optimizer(*b, names_of(others), folder(), {.convert = false}); }),
        "w.0"));
    const auto report = load_optimizer(*b, names_of(others), folder());
    EXPECT_EQ(report.converted.size(), 5U) << "all but the empty one";
    for (std::size_t n = 0; n < weights.size(); ++n)
        EXPECT_TRUE(same_bits(a->master(weights[n]), b->master(others[n]))) << n;
    train(*b, others, 3, 4);
}

// Weights that a program keeps itself; and a parameter that was cast after its last step.
TEST_F(CheckpointFolder, WeightsAreOptional) {
    const auto weights = weights_of(13);
    const auto a = make_optimizer(Rule::kAdamW, Format::kNative, weights);
    train(*a, weights, 0, 2);
    const auto resumed = copies(weights);
    const auto b = make_optimizer(Rule::kAdamW, Format::kNative, resumed);
    const auto with = save_optimizer(*a, names_of(weights), folder());
    EXPECT_LT(save_optimizer(*a, names_of(weights), folder(), {.weights = false}), with);
    EXPECT_FALSE(load_optimizer(*b, names_of(resumed), folder()).weights);
    EXPECT_TRUE(same_everything(*a, weights, *b, resumed));

    for (const auto& w : weights) w.set_data(w.detach().to(torch::kFloat32));
    const auto masters = a->master(weights[0]);
    save_optimizer(*a, names_of(weights), folder());
    const auto wide = copies(weights, 0.0);
    const auto c = make_optimizer(Rule::kAdamW, Format::kNative, wide);
    load_optimizer(*c, names_of(wide), folder());
    EXPECT_TRUE(same_bits(c->master(wide[0]), masters));
    EXPECT_TRUE(same_everything(*a, weights, *c, wide));
}

// Without names parameters are known by their number, as those of the core are.
TEST_F(CheckpointFolder, NamesMayBeLeftOut) {
    const auto weights = weights_of(14);
    const auto a = make_optimizer(Rule::kLion, Format::kPaper, weights);
    train(*a, weights, 0, 2);
    save_optimizer(*a, ParameterNames(), folder(), {.application_json = R"({"step": 2})"});
    EXPECT_TRUE(contains(Checkpoint::open(folder()).metadata_json(), R"("application": {"step": 2})"));
    EXPECT_NE(Checkpoint::open(folder()).file("weights").find("parameter 3"), nullptr);
    const auto resumed = copies(weights, 0.5);
    const auto b = make_optimizer(Rule::kLion, Format::kPaper, resumed);
    load_optimizer(*b, ParameterNames(), folder());
    EXPECT_TRUE(same_everything(*a, weights, *b, resumed));
}

TEST_F(CheckpointFolder, WhatDoesNotFitIsRefusedAndNothingIsTouched) {
    const auto weights = weights_of(15);
    const auto a = make_optimizer(Rule::kAdamW, Format::kNative, weights);
    train(*a, weights, 0, 2);
    save_optimizer(*a, names_of(weights), folder());
    const auto refused = [&](const std::string& part, FlashOptimizer& optimizer, const Tensors& of_it,
                             const ParameterNames& names) {
        train(optimizer, of_it, 7, 8);
        const auto before = saved(optimizer);
        const auto first = of_it[0].clone();
        const auto message = message_of<FormatError>([&] { load_optimizer(optimizer, names, folder()); });
        EXPECT_TRUE(contains(message, part)) << message;
        EXPECT_EQ(saved(optimizer), before);
        EXPECT_TRUE(same_bits(of_it[0], first));
    };
    auto other = copies(weights);
    refused("AdamW", *make_optimizer(Rule::kLion, Format::kNative, other), other, names_of(other));
    other = copies(weights);
    other[1] = parameter(torch::ones({34}), torch::kBFloat16);
    refused("\"w.1\" has shape [33]", *make_optimizer(Rule::kAdamW, Format::kNative, other), other,
            names_of(other));
    other = copies(weights);
    other[1] = parameter(torch::ones({33}), torch::kFloat16);
    refused("bfloat16 and here float16", *make_optimizer(Rule::kAdamW, Format::kNative, other), other,
            names_of(other));
    other = copies(weights);
    const auto fewer = make_optimizer(Rule::kAdamW, Format::kNative, {other[0]});
    refused("is not in this optimizer", *fewer, {other[0]}, names_of(other));
    fewer->add_param_group(torch::optim::OptimizerParamGroup({other[1]}));
    refused("1 parameter groups", *fewer, {other[0]}, names_of(other));

    ParameterNames some;
    some.insert("w.0", weights[0]);
    const auto unnamed = message_of<InvalidArgument>([&] { save_optimizer(*a, some, folder()); });
    EXPECT_TRUE(contains(unnamed, "has no name") && contains(unnamed, "group 0, parameter 1")) << unnamed;
}

// What earlier versions wrote.
SafetensorsFile golden(const char* folder, const char* file) {
    return Checkpoint::open(kGolden / folder).file(file);
}
void expect_as_in(FlashOptimizer& optimizer, const ParameterNames& names, const char* folder) {
    const auto weights = golden(folder, "weights"), states = golden(folder, "optimizer");
    std::size_t tensors = 0;
    for (const auto& item : names) {
        EXPECT_EQ(optimizer.step_count(item.value()), 3);
        EXPECT_EQ(bytes_of(item.value()), text_of(weights.read(weights.tensor(item.key())))) << item.key();
        for (const auto& [name, tensor] : optimizer.state_tensors(item.value())) {
            if (tensor.numel() == 0) continue;
            EXPECT_EQ(bytes_of(tensor), text_of(states.read(states.tensor(item.key() + "." + name)))) << name;
            ++tensors;
        }
    }
    EXPECT_EQ(tensors, states.tensors().size());
}

torch::Tensor ones(at::IntArrayRef sizes) { return parameter(torch::ones(sizes), torch::kBFloat16); }

std::vector<torch::optim::OptimizerParamGroup> two_groups(const Tensors& first, const Tensors& second) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(first);
    groups.emplace_back(second);
    return groups;
}

TEST(GoldenCheckpoints, OfTheCoreAndOfATrainingRun) {
    {
        const auto conv = parameter(torch::ones({2, 3, 4, 5}).contiguous(torch::MemoryFormat::ChannelsLast),
                                    torch::kBFloat16);
        ParameterNames names;
        names.insert("matrix", ones({5, 70}));
        names.insert("conv", conv);
        names.insert("norm/scale", ones({33}));
        names.insert("empty", ones({0, 4}));
        const auto options = AdamWOptions(0.5).min_quantized_numel(0).min_quantized_numel_1d(0);
        AdamW optimizer(two_groups({names["matrix"], conv}, {names["norm/scale"], names["empty"]}), options);
        load_optimizer(optimizer, names, kGolden / "optimizer");
        expect_as_in(optimizer, names, "optimizer");
        EXPECT_EQ(optimizer.param_groups()[1].options().get_lr(), 0.02);
    }
    ParameterNames names;
    names.insert("embedding", ones({32, 128}));
    names.insert("norm", ones({33}));
    AdamW optimizer(two_groups({names["embedding"]}, {names["norm"]}), AdamWOptions(0.5));
    EXPECT_FALSE(load_optimizer(optimizer, names, kGolden / "training_run").hyperparameters);
    expect_as_in(optimizer, names, "training_run");
    EXPECT_EQ(optimizer.bad_elements(names["norm"]), 1);
    EXPECT_EQ(optimizer.param_groups()[1].options().get_lr(), 0.5);
}

// Archives are compared with an independent reading of their entries.
TEST(GoldenCheckpoints, ArchivesOfBothVersions) {
    torch::serialize::InputArchive raw;
    raw.load_from((kGolden / "archive_v2.pt").string());
    std::vector<std::string> written;
    for (const char* file : {"archive_v1.pt", "archive_v2.pt"}) {
        const Tensors weights = {ones({3, 40}), ones({33}), ones({7})};
        const auto options = AdamWOptions(0.5).min_quantized_numel(0).min_quantized_numel_1d(0);
        AdamW optimizer(two_groups({weights[0]}, {weights[1], weights[2]}), options);
        torch::load(optimizer, (kGolden / file).string());
        EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 0.01);
        EXPECT_EQ(optimizer.param_groups()[1].options().get_lr(), 0.02);
        const auto& second = dynamic_cast<const AdamWOptions&>(optimizer.param_groups()[1].options());
        EXPECT_EQ(second.weight_decay(), 0.0);
        EXPECT_EQ(second.min_quantized_numel(), 0);
        EXPECT_TRUE(optimizer.state_tensors(weights[2]).empty());
        EXPECT_EQ(optimizer.bad_elements(weights[1]), 1);
        for (const int n : {0, 1}) {
            const auto& w = weights[static_cast<std::size_t>(n)];
            EXPECT_EQ(optimizer.step_count(w), 3);
            const auto state = optimizer.state_tensors(w);
            EXPECT_EQ(state.size(), 5U);
            for (const auto& [name, tensor] : state) {
                c10::IValue list;
                raw.read("state/" + name, list);
                EXPECT_EQ(bytes_of(tensor), bytes_of(list.toTensorList().get(static_cast<std::size_t>(n))))
                    << file << " " << name;
            }
        }
        written.push_back(saved(optimizer));
    }
    EXPECT_EQ(written[0], written[1]) << "both are of the same optimizer";
}

}  // namespace
}  // namespace flashoptim::libtorch

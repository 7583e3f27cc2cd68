// The paper format against the golden vectors of tests/golden, which the authors' own package computed:
// steps on every backend and the codecs alone. If this fails, states of that package no longer read or
// continue here as they do there.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/quantize.h"

namespace flashoptim::test {
namespace {

using checkpoint::SafetensorsFile;
using checkpoint::StorageType;
using Json = nlohmann::json;
using Bytes = std::vector<std::byte>;

const SafetensorsFile& golden() {
    static const auto file =
        SafetensorsFile::open(std::filesystem::path(FLASHOPTIM_GOLDEN_FOLDER) / "paper.safetensors");
    return file;
}

template <class T>
std::vector<T> values_of(const std::string& name) {
    const auto& tensor = golden().tensor(name);
    std::vector<T> values(tensor.byte_count / sizeof(T));
    golden().read(tensor, std::as_writable_bytes(std::span(values)));
    return values;
}

/// Row `row` of a tensor of `rows` rows.
Bytes row_of(const std::string& name, std::size_t row) {
    const auto& tensor = golden().tensor(name);
    const auto all = golden().read(tensor);
    const auto size = all.size() / static_cast<std::size_t>(tensor.shape.at(0));
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(row * size);
    return {begin, begin + static_cast<std::ptrdiff_t>(size)};
}

/// How many values differ in any bit; a NaN equals any NaN (tests/golden/README.md, Comparing).
std::size_t differences(std::span<const std::byte> ours, std::span<const std::byte> theirs,
                        StorageType type) {
    if (ours.size() != theirs.size()) return std::max(ours.size(), theirs.size());
    const auto size = checkpoint::element_size(type);
    const auto is_nan = [&](const std::byte* p) {
        std::uint32_t wide = 0;
        std::uint16_t narrow = 0;
        if (type == StorageType::kFloat32) {
            std::memcpy(&wide, p, sizeof wide);
            return (wide & 0x7fffffffU) > 0x7f800000U;
        }
        std::memcpy(&narrow, p, sizeof narrow);
        if (type == StorageType::kBFloat16) return (narrow & 0x7fffU) > 0x7f80U;
        return type == StorageType::kFloat16 && (narrow & 0x7fffU) > 0x7c00U;
    };
    std::size_t count = 0;
    for (std::size_t at = 0; at < ours.size(); at += size) {
        if (std::memcmp(ours.data() + at, theirs.data() + at, size) == 0) continue;
        if (size >= 2 && is_nan(ours.data() + at) && is_nan(theirs.data() + at)) continue;
        ++count;
    }
    return count;
}

// ------------------------------------------------------------------------------------------------- steps

DType dtype_of(const std::string& name) {
    if (name == "bf16") return DType::kBFloat16;
    return name == "fp16" ? DType::kFloat16 : DType::kFloat32;
}

Hyperparameters hyperparameters_of(const Json& c) {
    Hyperparameters h;
    h.learning_rate = c.at("lr");
    h.initial_learning_rate = c.at("initial_lr");
    h.weight_decay = c.at("weight_decay");
    h.momentum = c.at("momentum");
    h.dampening = c.at("dampening");
    h.nesterov = c.at("nesterov");
    h.fully_decoupled = c.at("decouple_lr");
    if (!c.at("betas").is_null()) {
        h.beta1 = c.at("betas").at(0);
        h.beta2 = c.at("betas").at(1);
    }
    if (!c.at("eps").is_null()) h.epsilon = c.at("eps");
    return h;
}

std::unique_ptr<Optimizer> optimizer_of(const Json& c, Backend backend) {
    OptimizerOptions options;
    options.storage.format = Format::kPaper;
    options.storage.master_weight_bits =
        c.at("master_weight_bits").is_null() ? 0 : c.at("master_weight_bits").get<int>();
    options.storage.quantize = c.at("quantize");
    options.check_gradients =
        !std::string(c.at("name")).starts_with("extreme");  // the package has no such rule
    options.backend = backend;
    const std::string rule = c.at("rule");
    std::unique_ptr<Optimizer> optimizer;
    if (rule == "sgd") optimizer = std::make_unique<SGD>(SGDHyperparameters{}, options);
    if (rule == "sgdw") optimizer = std::make_unique<SGDW>(SGDHyperparameters{}, options);
    if (rule == "adam") optimizer = std::make_unique<Adam>(AdamHyperparameters{}, options);
    if (rule == "adamw") optimizer = std::make_unique<AdamW>(AdamWHyperparameters{}, options);
    if (rule == "lion") optimizer = std::make_unique<Lion>(LionHyperparameters{}, options);
    optimizer->set_hyperparameters(0, hyperparameters_of(c));
    return optimizer;
}

/// Our name of a state buffer and the one in the file.
std::map<std::string, std::string> state_names(const Json& c) {
    const bool quantized = c.at("quantize");
    const std::string m = quantized ? "m_codes" : "m", v = quantized ? "v_codes" : "v";
    return {{"error_bits", "corrections"},         {"exp_avg", m},    {"momentum_buffer", m},
            {"exp_avg_scales", "m_scales"},        {"exp_avg_sq", v}, {"exp_avg_sq_scales", "v_scales"},
            {"momentum_buffer_scales", "m_scales"}};
}

void run_case(const Json& c, Backend backend) {
    const std::string name = c.at("name"), dtype_name = c.at("weight_dtype");
    const auto dtype = dtype_of(dtype_name);
    const std::string inputs = std::string(c.at("inputs")) + "/" + dtype_name + "/";
    const std::int64_t numel = c.at("numel");
    auto weights = golden().read(golden().tensor(inputs + "weights"));
    const auto gradient_rows = golden().tensor(inputs + "gradients").shape.at(0);

    const auto optimizer = optimizer_of(c, backend);
    const auto p = optimizer->add_parameter({weights.data(), dtype, {numel}, {}}, name);
    for (const auto& state : optimizer->state(p)) {
        if (state.name != "error_bits") continue;
        const auto& tensor =
            golden().tensor(inputs + "corrections-" + std::to_string(c.at("master_weight_bits").get<int>()));
        golden().read(tensor, state.bytes);
    }

    const std::vector<std::int64_t> stored = c.at("steps");
    for (std::int64_t t = 1; t <= stored.back(); ++t) {
        auto gradient = row_of(inputs + "gradients", static_cast<std::size_t>((t - 1) % gradient_rows));
        optimizer->set_gradient(p, {gradient.data(), dtype, {numel}, {}});
        optimizer->step();
        const auto found = std::find(stored.begin(), stored.end(), t);
        if (found == stored.end()) continue;
        const auto row = static_cast<std::size_t>(found - stored.begin());
        std::size_t compared = 1;
        const auto compare = [&](const std::string& key, std::span<const std::byte> ours) {
            const auto tensor = name + "/" + key;
            EXPECT_EQ(differences(ours, row_of(tensor, row), golden().tensor(tensor).dtype), 0U)
                << tensor << " after step " << t << " on " << name_of(backend);
        };
        compare("weights", weights);
        const auto names = state_names(c);
        for (const auto& state : optimizer->state(p)) {
            compare(names.at(state.name), state.bytes);
            ++compared;
        }
        std::size_t in_file = 0;
        for (const auto& tensor : golden().tensors()) in_file += tensor.name.starts_with(name + "/") ? 1 : 0;
        EXPECT_EQ(compared, in_file) << name;
    }
}

/// Of the unquantised cases those with 16-bit weights keep 16-bit moments there and fp32
/// ones here: not comparable.
bool is_comparable(const Json& c) { return c.at("quantize") || c.at("weight_dtype") == "fp32"; }

TEST(PaperGolden, EveryStepOfEveryCaseOnEveryBackend) {
    const auto cases = Json::parse(golden().metadata().at("golden")).at("cases");
    ASSERT_EQ(cases.size(), 49U);
    std::size_t compared = 0;
    for (const auto& c : cases) {
        if (!is_comparable(c)) continue;
        ++compared;
        for (const auto backend : available_backends()) run_case(c, backend);
    }
    EXPECT_EQ(compared, 43U);
}

// ------------------------------------------------------------------------------------------------ codecs

void expect_weights_as_authors(const std::string& dtype_name, int bits) {
    const auto prefix = "codec/" + dtype_name + "/";
    const std::string of_bits = bits == 24 ? "-24" : "-32";
    const auto dtype = dtype_of(dtype_name);
    const auto type = dtype == DType::kBFloat16 ? StorageType::kBFloat16 : StorageType::kFloat16;
    const auto correction_type = bits == 24 ? StorageType::kInt8 : StorageType::kInt16;
    const auto correction_size = static_cast<std::size_t>(bits) / 8 - 2;
    const auto plan_for = [&](std::size_t numel) {
        StorageOptions options;
        options.format = Format::kPaper;
        options.master_weight_bits = bits;
        return plan_storage(Rule::kLion, {}, options, dtype,
                            layout_of({nullptr, dtype, {static_cast<std::int64_t>(numel)}, {}}));
    };

    const auto wide = values_of<float>(prefix + "fp32");
    const auto narrow = values_of<std::uint16_t>(prefix + "weights");
    const auto corrections = golden().read(golden().tensor(prefix + "corrections" + of_bits));
    std::vector<std::uint16_t> ours(wide.size());
    Bytes our_corrections(wide.size() * correction_size);
    split_weights(plan_for(wide.size()), wide, ours.data(), our_corrections.data());
    // The last 64 narrow weights were not rounded from their values: no splitter makes such a pair.
    const auto rounded = wide.size() - 64;
    EXPECT_EQ(differences(std::as_bytes(std::span(ours).first(rounded)),
                          std::as_bytes(std::span(narrow).first(rounded)), type),
              0U);
    EXPECT_EQ(differences(std::span(our_corrections).first(rounded * correction_size),
                          std::span(corrections).first(rounded * correction_size), correction_type),
              0U);

    const auto expect_joined = [&](const std::vector<std::uint16_t>& weights, const Bytes& lo,
                                   const std::string& expected) {
        std::vector<float> values(weights.size());
        join_weights(plan_for(weights.size()), weights.data(), lo.data(), values);
        EXPECT_EQ(differences(std::as_bytes(std::span(values)), golden().read(golden().tensor(expected)),
                              StorageType::kFloat32),
                  0U)
            << expected;
    };
    expect_joined(narrow, corrections, prefix + "decoded" + of_bits);
    const auto decode = prefix + "decode" + of_bits + "/";
    expect_joined(values_of<std::uint16_t>(decode + "weights"),
                  golden().read(golden().tensor(decode + "corrections")), decode + "decoded");
}

TEST(PaperGolden, Bfloat16WeightsOf24Bits) { expect_weights_as_authors("bf16", 24); }
TEST(PaperGolden, Bfloat16WeightsOf32Bits) { expect_weights_as_authors("bf16", 32); }
TEST(PaperGolden, Float16WeightsOf24Bits) { expect_weights_as_authors("fp16", 24); }
TEST(PaperGolden, Float16WeightsOf32Bits) { expect_weights_as_authors("fp16", 32); }

std::string codec_prefix(MomentKind moment) {
    return moment == MomentKind::kSigned ? "codec/m/" : "codec/v/";
}
Layout flat_layout(std::size_t numel) {
    return layout_of({nullptr, DType::kFloat32, {static_cast<std::int64_t>(numel)}, {}});
}

/// Infinities, NaN and values beyond binary16 among them: the ground functions take
/// what the public ones refuse.
void expect_codes_as_authors(MomentKind moment) {
    using L = ScalarLanes;
    const bool is_first = moment == MomentKind::kSigned;
    const auto prefix = codec_prefix(moment);
    const auto values = values_of<float>(prefix + "values");
    const auto codes = golden().read(golden().tensor(prefix + "codes"));
    const auto scales = values_of<std::uint16_t>(prefix + "scales");
    std::size_t public_groups = 0;
    for (std::size_t begin = 0, group = 0; begin < values.size(); begin += kGroupSize, ++group) {
        const auto size = std::min<std::size_t>(kGroupSize, values.size() - begin);
        float largest = 0.0F, scale = 0.0F, encode = 0.0F;
        std::vector<float> carried(size);
        for (std::size_t n = 0; n < size; ++n) {
            carried[n] = is_first ? values[begin + n] : L::sqrt(values[begin + n]);
            largest = L::max_ignoring_nan(largest, absolute<L>(carried[n]));
        }
        PaperMoments::Either::new_scale<L>(largest, 0.0F, {}, scale, encode);
        EXPECT_EQ(PaperMoments::scale_bits(scale), scales[group]) << "group " << group;
        bool in_range = true;
        for (std::size_t n = 0; n < size; ++n) {
            const auto code = is_first ? PaperMoments::Signed::code<L>(carried[n], encode, 0)
                                       : PaperMoments::Squared::code<L>(carried[n], encode, 0);
            ASSERT_EQ(static_cast<std::byte>(code & 0xffU), codes[begin + n])
                << values[begin + n] << " in group " << group;
            in_range = in_range && std::fabs(carried[n]) <= 65504.0F;
        }
        if (!in_range) continue;
        ++public_groups;
        Bytes our_codes(size);
        std::vector<std::uint16_t> our_scales(1);
        quantize_moment(moment, MomentStorage::kPaper, flat_layout(size),
                        std::span(values).subspan(begin, size), our_codes, our_scales);
        EXPECT_EQ(our_scales[0], scales[group]);
        EXPECT_EQ(differences(our_codes, std::span(codes).subspan(begin, size), StorageType::kInt8), 0U)
            << "group " << group;
    }
    EXPECT_GT(public_groups, values.size() / kGroupSize / 2);
}

void expect_decoded_as_authors(MomentKind moment) {
    const auto prefix = codec_prefix(moment);
    for (const auto& where : {prefix, prefix + "decode/"}) {
        const auto codes = golden().read(golden().tensor(where + "codes"));
        const auto scales = values_of<std::uint16_t>(where + "scales");
        std::vector<float> values(codes.size());
        dequantize_moment(moment, MomentStorage::kPaper, flat_layout(codes.size()), codes, scales, values);
        EXPECT_EQ(differences(std::as_bytes(std::span(values)),
                              golden().read(golden().tensor(where + "decoded")), StorageType::kFloat32),
                  0U)
            << where;
    }
}

TEST(PaperGolden, FirstMomentsEncode) { expect_codes_as_authors(MomentKind::kSigned); }
TEST(PaperGolden, SecondMomentsEncode) { expect_codes_as_authors(MomentKind::kSquared); }
TEST(PaperGolden, FirstMomentsDecode) { expect_decoded_as_authors(MomentKind::kSigned); }
TEST(PaperGolden, SecondMomentsDecode) { expect_decoded_as_authors(MomentKind::kSquared); }

}  // namespace
}  // namespace flashoptim::test

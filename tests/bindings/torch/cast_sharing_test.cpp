// cast_model for every memory layout of a model's tensors, and every kind of tensor. The same table as in
// tests/python/test_cast_sharing.py.
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

/// A module of tensors: buffers where the name begins with "buffer".
struct Holder : torch::nn::Module {
    void add(const std::string& name, const torch::Tensor& tensor) {
        if (name.rfind("buffer", 0) == 0) {
            register_buffer(name, tensor);
        } else {
            register_parameter(name, tensor, tensor.is_floating_point() || tensor.is_complex());
        }
    }
};

using Named = std::vector<std::pair<std::string, torch::Tensor>>;

std::shared_ptr<Holder> holder_of(const Named& tensors) {
    auto holder = std::make_shared<Holder>();
    for (const auto& [name, tensor] : tensors) holder->add(name, tensor);
    return holder;
}

torch::Tensor matrix(torch::Device device) {
    return torch::arange(48, torch::TensorOptions(torch::kFloat32).device(device)).view({6, 8});
}

/// Name, and the tensors on a device. Each call makes the same values.
const std::vector<std::pair<std::string, std::function<Named(torch::Device)>>> kLayouts = {
    {"one object",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{{"a", base}, {"b", base}};
     }},
    {"two objects",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{{"a", base}, {"b", base.detach()}};
     }},
    {"transposed",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{{"a", base}, {"b", base.detach().t()}};
     }},
    {"reshaped",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{
             {"a", base}, {"b", base.detach().view({-1})}, {"buffer", base.detach().view({2, 3, 8})}};
     }},
    {"one address, two shapes",
     [](torch::Device device) {
         const auto flat = matrix(device).view({48});
         return Named{{"a", flat.slice(0, 0, 40)}, {"b", flat.slice(0, 0, 8)}, {"c", flat[0]}};
     }},
    {"overlapping",
     [](torch::Device device) {
         const auto flat = matrix(device).view({48});
         return Named{{"a", flat.slice(0, 0, 30)}, {"b", flat.slice(0, 20)}};
     }},
    {"columns",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{{"a", base.slice(1, 0, 4)}, {"b", base.slice(1, 4)}};
     }},
    {"expanded",
     [](torch::Device device) {
         const auto row = matrix(device)[0];
         return Named{{"a", row.expand({6, 8})}, {"b", row}};
     }},
    {"windows",
     [](torch::Device device) {
         const auto flat = matrix(device).view({48});
         return Named{{"a", flat.unfold(0, 8, 4)}, {"b", flat}};
     }},
    {"buffer of a parameter",
     [](torch::Device device) {
         const auto base = matrix(device);
         return Named{{"a", base}, {"buffer", base.detach().slice(0, 2, 4)}};
     }},
    {"nothing in it",
     [](torch::Device device) {
         const auto options = torch::TensorOptions(torch::kFloat32).device(device);
         return Named{{"a", torch::empty({0, 4}, options)}, {"b", torch::empty({3, 0}, options)}};
     }},
};

std::map<std::string, torch::Tensor> tensors_of(const torch::nn::Module& module) {
    std::map<std::string, torch::Tensor> found;
    for (const auto& item : module.named_parameters()) found.emplace(item.key(), item.value());
    for (const auto& item : module.named_buffers()) found.emplace(item.key(), item.value());
    return found;
}

/// Which tensors change when the first element of another one is written.
std::set<std::pair<std::string, std::string>> common(const torch::nn::Module& module) {
    const torch::NoGradGuard no_gradients;
    const auto tensors = tensors_of(module);
    std::set<std::pair<std::string, std::string>> found;
    for (const auto& [name, tensor] : tensors) {
        std::map<std::string, torch::Tensor> before;
        for (const auto& [other, value] : tensors) before.emplace(other, value.clone());
        if (tensor.numel() != 0) {
            tensor.detach().as_strided({1}, {1}, tensor.storage_offset()).fill_(-7.0);
        }
        for (const auto& [other, value] : tensors) {
            if (!torch::equal(before.at(other), value)) found.emplace(name, other);
        }
    }
    return found;
}

TEST(CastSharing, ShapesValuesAndSharingStay) {
    for (const auto& [name, make] : kLayouts) {
        SCOPED_TRACE(name);
        const auto before = holder_of(make(torch::kCPU));
        const auto model = holder_of(make(torch::kCPU));
        const auto objects = tensors_of(*model);
        cast_model(*model);
        const auto after = tensors_of(*model);
        for (const auto& [key, tensor] : tensors_of(*before)) {
            SCOPED_TRACE(key);
            ASSERT_TRUE(after.at(key).is_same(objects.at(key)));
            ASSERT_EQ(after.at(key).scalar_type(), torch::kBFloat16);
            ASSERT_EQ(after.at(key).sizes(), tensor.sizes());
            ASSERT_EQ(after.at(key).requires_grad(), tensor.requires_grad());
            if (tensor.numel() != 0) {
                ASSERT_EQ(after.at(key).strides(), tensor.strides());
            }
            ASSERT_TRUE(torch::equal(after.at(key), tensor.to(torch::kBFloat16)));
        }
        EXPECT_EQ(common(*model), common(*before));
    }
}

/// Large models are cast before they have weights.
TEST(CastSharing, ModelsOnMetaKeepTheirShapes) {
    for (const auto& [name, make] : kLayouts) {
        SCOPED_TRACE(name);
        const auto model = holder_of(make(torch::kMeta));
        const auto wanted = holder_of(make(torch::kMeta));
        cast_model(*model);
        const auto after = tensors_of(*model);
        for (const auto& [key, tensor] : tensors_of(*wanted)) {
            ASSERT_EQ(after.at(key).sizes(), tensor.sizes());
            ASSERT_EQ(after.at(key).scalar_type(), torch::kBFloat16);
        }
    }
}

TEST(CastSharing, WhatOnePlaceKeepsIsKeptEverywhere) {
    for (const auto& [name, make] : kLayouts) {
        if (name == "columns" || name == "nothing in it") continue;
        SCOPED_TRACE(name);
        const auto model = holder_of(make(torch::kCPU));
        cast_model(*model, torch::kBFloat16, {.keep = {"a"}});
        for (const auto& [key, tensor] : tensors_of(*model)) EXPECT_EQ(tensor.scalar_type(), torch::kFloat32);
    }
    const auto columns = holder_of(kLayouts[6].second(torch::kCPU));
    cast_model(*columns, torch::kBFloat16, {.keep = {"a"}});
    EXPECT_EQ(tensors_of(*columns).at("a").scalar_type(), torch::kFloat32);
    EXPECT_EQ(tensors_of(*columns).at("b").scalar_type(), torch::kBFloat16) << "no element in common";
}

TEST(CastSharing, OnlyNumbersAreCast) {
    for (const auto dtype :
         {torch::kInt32, torch::kInt64, torch::kInt8, torch::kUInt8, torch::kBool, torch::kComplexFloat,
          torch::kFloat8_e4m3fn, torch::kFloat32, torch::kFloat64, torch::kFloat16, torch::kBFloat16}) {
        const auto values = torch::arange(100).to(dtype);
        const bool is_number = dtype == torch::kFloat32 || dtype == torch::kFloat64 ||
                               dtype == torch::kFloat16 || dtype == torch::kBFloat16;
        auto model = std::make_shared<Holder>();
        model->register_parameter("a", values.clone(), /*requires_grad=*/false);
        model->register_buffer("buffer", values.clone());
        cast_model(*model);
        for (const auto& [key, tensor] : tensors_of(*model)) {
            EXPECT_EQ(tensor.scalar_type(), is_number ? torch::kBFloat16 : dtype) << key;
        }
    }
}

TEST(CastSharing, MemoryThatIsSeenAsTwoTypesStays) {
    const auto pair = torch::randn({8, 2});
    const auto model =
        holder_of({{"a", torch::view_as_complex(pair)}, {"buffer", pair}, {"b", torch::randn({4})}});
    cast_model(*model);
    EXPECT_EQ(tensors_of(*model).at("a").scalar_type(), torch::kComplexFloat);
    EXPECT_EQ(tensors_of(*model).at("buffer").scalar_type(), torch::kFloat32);
    EXPECT_EQ(tensors_of(*model).at("b").scalar_type(), torch::kBFloat16);
}

TEST(CastSharing, RefusesAModelMadeInInferenceMode) {
    std::shared_ptr<Holder> model;
    {
        const torch::InferenceMode inference;
        model = holder_of({{"buffer", torch::randn({4})}});
    }
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { cast_model(*model); }), "inference mode"));
}

}  // namespace
}  // namespace flashoptim::libtorch

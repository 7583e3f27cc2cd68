// Casts a model to 16 bits in place, except for the layers that must stay in fp32.
#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flashoptim/libtorch.h"
#include "shared_memory.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
bool matches(std::string_view pattern, std::string_view text) {
    const auto star = pattern.find('*');
    if (star == std::string_view::npos) return pattern == text;
    if (text.substr(0, star) != pattern.substr(0, star)) return false;
    const auto rest = pattern.substr(star + 1);
    for (auto begin = star; begin <= text.size(); ++begin) {
        if (matches(rest, text.substr(begin))) return true;
    }
    return false;
}

/// The caller's names of layers to keep, and which of them have matched a layer.
class KeepList {
public:
    explicit KeepList(const std::vector<std::string>& patterns)
        : patterns_(patterns), used_(patterns.size(), false) {}

    bool contains(const std::string& name) {
        bool found = false;
        for (std::size_t n = 0; n < patterns_.size(); ++n) {
            if (!matches(patterns_[n], name)) continue;
            used_[n] = true;
            found = true;
        }
        return found;
    }

    void refuse_unused() const {
        for (std::size_t n = 0; n < patterns_.size(); ++n) {
            if (!used_[n]) {
                throw InvalidArgument("cast_model: keep names \"" + patterns_[n] +
                                      "\", which no module, parameter or buffer is called; write names as "
                                      "named_parameters() gives them");
            }
        }
    }

private:
    const std::vector<std::string>& patterns_;
    std::vector<bool> used_;
};

/// The tensors of a model, each listed once, and whether any of its uses keeps it in fp32.
struct Plan {
    std::vector<torch::Tensor> tensors;
    std::vector<std::string> names;
    std::vector<bool> kept;
    std::unordered_map<const void*, std::size_t> number_of;

    void add(const std::string& name, const torch::Tensor& tensor, bool keep) {
        const auto [place, is_new] = number_of.try_emplace(tensor.unsafeGetTensorImpl(), tensors.size());
        if (is_new) {
            tensors.push_back(tensor);
            names.push_back(name);
            kept.push_back(false);
        }
        if (keep) kept[place->second] = true;
    }
};

/// Whether the elements are plain numbers. Integers and floating-point types of 8 bits or less are codes that
/// need scales.
bool is_castable(torch::Dtype dtype) { return is_steppable(dtype) || dtype == torch::kFloat64; }

void visit(const torch::nn::Module& module, const std::string& name, bool kept, KeepList& keep_list,
           Plan& plan) {
    const auto* statistics = module.named_buffers(/*recurse=*/false).find("running_mean");
    if (keep_list.contains(name) || (statistics != nullptr && statistics->defined())) kept = true;
    const auto prefix = name.empty() ? name : name + '.';
    const auto look_at = [&](const std::string& key, const torch::Tensor& tensor) {
        const bool keep = keep_list.contains(prefix + key) || kept;
        if (tensor.defined()) plan.add(prefix + key, tensor, keep || !is_castable(tensor.scalar_type()));
    };
    for (const auto& item : module.named_parameters(/*recurse=*/false)) look_at(item.key(), item.value());
    for (const auto& item : module.named_buffers(/*recurse=*/false)) look_at(item.key(), item.value());
    for (const auto& child : module.named_children())
        visit(*child.value(), prefix + child.key(), kept, keep_list, plan);
}

/// Chooses the tensors to cast. Tensors that share memory are cast together. None of them is cast if one is
/// kept or if they have different dtypes.
std::vector<torch::Tensor> to_cast(const Plan& plan, torch::Dtype dtype) {
    std::vector<torch::Tensor> chosen;
    for (const auto& group : sharing(plan.tensors)) {
        const auto type = plan.tensors[group.front()].scalar_type();
        const bool stays = std::any_of(group.begin(), group.end(), [&](std::size_t n) {
            return plan.kept[n] || plan.tensors[n].scalar_type() != type;
        });
        if (stays || type == dtype) continue;
        for (const auto n : group) {
            if (plan.tensors[n].is_inference()) {
                throw InvalidArgument(
                    "cast_model: \"" + plan.names[n] +
                    "\" was made in inference mode, where it cannot be exchanged; make the model "
                    "outside of it");
            }
            chosen.push_back(plan.tensors[n]);
        }
    }
    return chosen;
}

}  // namespace

void cast_model(torch::nn::Module& model, torch::Dtype dtype, const CastOptions& options) {
    if (!is_steppable(dtype)) {
        throw InvalidArgument("cast_model: a model cannot be cast to " + name_of(dtype) +
                              "; choose float32, bfloat16 or float16");
    }
    KeepList keep_list(options.keep);
    Plan plan;
    visit(model, "", false, keep_list, plan);
    keep_list.refuse_unused();

    auto tensors = to_cast(plan, dtype);
    const torch::NoGradGuard no_gradients;
    copy_as(tensors, dtype, [&](std::size_t n, const torch::Tensor& copy) {
        auto& tensor = tensors[n];
        const auto gradient = tensor.is_leaf() ? tensor.grad() : torch::Tensor();
        if (gradient.defined()) tensor.mutable_grad().reset();
        tensor.set_data(copy);
        if (gradient.defined()) tensor.mutable_grad() = gradient.to(dtype);
    });
}

}  // namespace flashoptim::libtorch

// Casting a model to 16 bits in place, except for what must stay in fp32.
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "flashoptim/libtorch.h"
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

/// Which of the caller's names have matched something.
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

struct Plan {
    std::vector<torch::Tensor> cast;
    std::unordered_set<const void*> keep;  // wins where a tensor is used in several places
};

void visit(const torch::nn::Module& module, const std::string& name, bool kept, KeepList& keep_list,
           Plan& plan) {
    const auto* statistics = module.named_buffers(/*recurse=*/false).find("running_mean");
    if (keep_list.contains(name) || (statistics != nullptr && statistics->defined())) kept = true;
    const auto prefix = name.empty() ? name : name + '.';
    const auto look_at = [&](const std::string& key, const torch::Tensor& tensor) {
        const bool keep = keep_list.contains(prefix + key) || kept;
        if (!tensor.defined() || !tensor.is_floating_point()) return;
        if (keep) {
            plan.keep.insert(tensor.unsafeGetTensorImpl());
        } else {
            plan.cast.push_back(tensor);
        }
    };
    for (const auto& item : module.named_parameters(/*recurse=*/false)) look_at(item.key(), item.value());
    for (const auto& item : module.named_buffers(/*recurse=*/false)) look_at(item.key(), item.value());
    for (const auto& child : module.named_children())
        visit(*child.value(), prefix + child.key(), kept, keep_list, plan);
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

    const torch::NoGradGuard no_gradients;
    for (auto& tensor : plan.cast) {
        if (plan.keep.contains(tensor.unsafeGetTensorImpl()) || tensor.scalar_type() == dtype) continue;
        const auto gradient = tensor.grad();
        tensor.mutable_grad().reset();
        tensor.set_data(tensor.to(dtype));
        if (gradient.defined()) tensor.mutable_grad() = gradient.to(dtype);
    }
}

}  // namespace flashoptim::libtorch

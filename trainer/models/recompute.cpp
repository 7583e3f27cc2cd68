// The autograd function behind recompute_in_backward(). Knows no model.
#include "trainer/models/recompute.h"

#include <utility>

#include "trainer/models/autocast.h"

namespace flashoptim::trainer {
namespace {

using Body = std::function<torch::Tensor(const torch::Tensor&)>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What backward needs besides tensors, held by the graph node.
struct Recipe : torch::CustomClassHolder {
    Body body;
    at::DeviceType device = at::kCPU;
    bool autocast_enabled = false;
    at::ScalarType autocast_dtype = at::kBFloat16;
};

class Recompute : public torch::autograd::Function<Recompute> {
public:
    // The parameters are arguments so that the node has edges to them; `body` reads
    // them through its own handles.
    static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& input, at::TensorList parameters,
                                 const c10::intrusive_ptr<Recipe>& recipe) {
        variable_list saved{input};
        saved.insert(saved.end(), parameters.begin(), parameters.end());
        ctx->save_for_backward(std::move(saved));
        ctx->saved_data["recipe"] = c10::IValue::make_capsule(recipe);
        return recipe->body(input);
    }

    static variable_list backward(AutogradContext* ctx, variable_list output_gradients) {
        const variable_list saved = ctx->get_saved_variables();
        const auto recipe = c10::static_intrusive_pointer_cast<Recipe>(ctx->saved_data["recipe"].toCapsule());

        // Differentiating with respect to the parameters themselves captures their
        // gradients without accumulating them.
        variable_list leaves(saved.begin() + 1, saved.end());
        const torch::Tensor input = saved[0].detach().requires_grad_(saved[0].requires_grad());
        if (input.requires_grad()) {
            leaves.push_back(input);
        }
        torch::Tensor output;
        {
            const torch::AutoGradMode with_graph(true);
            const AutocastScope autocast(recipe->device, recipe->autocast_enabled, recipe->autocast_dtype);
            output = recipe->body(input);
        }
        variable_list gradients = torch::autograd::grad({output}, leaves, output_gradients);

        variable_list result;
        result.reserve(saved.size() + 1);
        if (input.requires_grad()) {
            result.push_back(std::move(gradients.back()));
            gradients.pop_back();
        } else {
            result.emplace_back();
        }
        std::move(gradients.begin(), gradients.end(), std::back_inserter(result));
        result.emplace_back();  // the recipe
        return result;
    }
};

}  // namespace

torch::Tensor recompute_in_backward(Body body, const torch::Tensor& input,
                                    const std::vector<torch::Tensor>& parameters) {
    if (!torch::GradMode::is_enabled()) {
        return body(input);
    }
    auto recipe = c10::make_intrusive<Recipe>();
    recipe->body = std::move(body);
    recipe->device = input.device().type();
    recipe->autocast_enabled = at::autocast::is_autocast_enabled(recipe->device);
    recipe->autocast_dtype = at::autocast::get_autocast_dtype(recipe->device);
    return Recompute::apply(input, at::TensorList(parameters), recipe);
}

}  // namespace flashoptim::trainer

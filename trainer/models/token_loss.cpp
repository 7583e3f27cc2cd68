// The autograd function behind token_loss(). Knows no model.
#include "trainer/models/token_loss.h"

#include <algorithm>

namespace flashoptim::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class TokenLoss : public torch::autograd::Function<TokenLoss> {
public:
    static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& hidden,
                                 const torch::Tensor& weight, const torch::Tensor& targets,
                                 torch::ScalarType product_dtype, std::int64_t slice_rows) {
        const std::int64_t tokens = hidden.size(0);
        const torch::Tensor projection = weight.to(product_dtype).t();
        const auto fp32 = hidden.options().dtype(torch::kFloat32);
        torch::Tensor log_partition = torch::empty({tokens}, fp32);
        torch::Tensor target_logit = torch::empty({tokens}, fp32);
        for (std::int64_t begin = 0; begin < tokens; begin += slice_rows) {
            const std::int64_t rows = std::min(slice_rows, tokens - begin);
            const torch::Tensor logits = slice_logits(hidden, projection, begin, rows);
            log_partition.narrow(0, begin, rows).copy_(logits.logsumexp(1));
            target_logit.narrow(0, begin, rows)
                .copy_(logits.gather(1, targets.narrow(0, begin, rows).unsqueeze(1)).squeeze(1));
        }
        ctx->save_for_backward({hidden, weight, targets, log_partition});
        ctx->saved_data["product_dtype"] = static_cast<std::int64_t>(product_dtype);
        ctx->saved_data["slice_rows"] = slice_rows;
        return (log_partition - target_logit).mean();
    }

    static variable_list backward(AutogradContext* ctx, variable_list output_gradients) {
        const variable_list saved = ctx->get_saved_variables();
        const torch::Tensor& hidden = saved[0];
        const torch::Tensor& weight = saved[1];
        const torch::Tensor& targets = saved[2];
        const torch::Tensor& log_partition = saved[3];
        const auto product_dtype = static_cast<torch::ScalarType>(ctx->saved_data["product_dtype"].toInt());
        const std::int64_t slice_rows = ctx->saved_data["slice_rows"].toInt();

        const std::int64_t tokens = hidden.size(0);
        const torch::Tensor weight_cast = weight.to(product_dtype);
        const torch::Tensor scale = output_gradients[0] / static_cast<double>(tokens);
        torch::Tensor hidden_gradient = torch::empty_like(hidden);
        torch::Tensor weight_gradient;
        for (std::int64_t begin = 0; begin < tokens; begin += slice_rows) {
            const std::int64_t rows = std::min(slice_rows, tokens - begin);
            // d loss / d logits = (softmax - one_hot) / tokens, formed in fp32 where the logits lie.
            torch::Tensor difference = slice_logits(hidden, weight_cast.t(), begin, rows);
            difference.sub_(log_partition.narrow(0, begin, rows).unsqueeze(1)).exp_();
            difference.scatter_add_(1, targets.narrow(0, begin, rows).unsqueeze(1),
                                    difference.new_full({rows, 1}, -1.0));
            const torch::Tensor logit_gradient = difference.mul_(scale).to(product_dtype);

            hidden_gradient.narrow(0, begin, rows).copy_(logit_gradient.mm(weight_cast));
            const torch::Tensor contribution =
                logit_gradient.t().mm(hidden.narrow(0, begin, rows).to(product_dtype));
            if (rows == tokens) {
                weight_gradient = contribution;
            } else if (begin == 0) {
                weight_gradient = contribution.to(torch::kFloat32);
            } else {
                weight_gradient.add_(contribution);
            }
        }
        return {hidden_gradient, weight_gradient.to(weight.scalar_type()), {}, {}, {}};
    }

private:
    static torch::Tensor slice_logits(const torch::Tensor& hidden, const torch::Tensor& projection,
                                      std::int64_t begin, std::int64_t rows) {
        return hidden.narrow(0, begin, rows).to(projection.scalar_type()).mm(projection).to(torch::kFloat32);
    }
};

}  // namespace

torch::Tensor token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                         const torch::Tensor& targets, torch::ScalarType product_dtype,
                         std::int64_t slice_elements) {
    const std::int64_t slice_rows = std::max<std::int64_t>(1, slice_elements / weight.size(0));
    return TokenLoss::apply(hidden, weight, targets, product_dtype, slice_rows);
}

}  // namespace flashoptim::trainer

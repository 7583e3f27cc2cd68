// Output projection and cross entropy in one, over slices of the tokens: the logits of a whole batch never
// exist at once. Knows no model.
#pragma once

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Mean cross entropy (0-dimensional, fp32, nats) of softmax(hidden @ weight^T) against `targets`.
/// `hidden` is (tokens, dim), `weight` (vocabulary, dim), `targets` int64 (tokens). The products run
/// in `product_dtype`, the softmax in fp32. At most `slice_elements` logits exist at a time, in
/// forward and in backward, which computes them again; the gradient of `weight` is summed over
/// slices in fp32 and rounded once.
torch::Tensor token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                         const torch::Tensor& targets, torch::ScalarType product_dtype,
                         std::int64_t slice_elements = std::int64_t{1} << 24);

}  // namespace flashoptim::trainer

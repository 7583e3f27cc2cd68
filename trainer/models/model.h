// What the training loop knows of a model: tokens in, one loss out. Never anything of one architecture.
#pragma once

#include <cstdint>
#include <memory>

#include "flashoptim/libtorch_headers.h"
#include "trainer/models/registry.h"

namespace flashoptim::trainer {

/// In which number formats a model computes. Loss and logits are fp32 in all of them.
enum class Precision {
    kBfloat16,      ///< weights and activations in bf16
    kFp32Autocast,  ///< weights in fp32; matrix products in bf16 under autocast: the usual mixed precision
    kFp32,          ///< everything in fp32
};

/// How a model is built: everything that does not belong to its shape.
struct ModelBuild {
    Precision precision = Precision::kBfloat16;
    /// Keep only each block's input for backward and compute the block again there. The
    /// gradients are the same bit for bit.
    bool activation_checkpointing = false;
    /// Of the initial weights; they are drawn in fp32 and rounded, so that all precisions start alike.
    std::uint64_t seed = 0;
};

/// A trainable model. Parameters are reached through torch::nn::Module::named_parameters().
class Model : public torch::nn::Module {
public:
    /// Mean loss (0-dimensional, fp32) of `inputs` against `targets`; for a language model both are int64
    /// (batch, sequence). Backward may run once through the result. Not thread-safe.
    virtual torch::Tensor forward(const torch::Tensor& inputs, const torch::Tensor& targets) = 0;

    /// Bytes of the 16-bit copies of fp32 weights that autocast holds at once between forward and
    /// backward; 0 without autocast.
    virtual std::int64_t autocast_copy_bytes() const = 0;
};

/// Builds the model with its initial weights. Throws InvalidArgument as llama_config() does.
std::shared_ptr<Model> make_model(const ModelOptions& options, const ModelBuild& build);

}  // namespace flashoptim::trainer

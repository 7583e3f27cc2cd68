// Counts what a run will allocate. Where LibTorch decides, takes the smaller number.
#include "trainer/memory_estimate.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/system/checked_arithmetic.h"
#include "trainer/human_bytes.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kBytesOfFloat = 4;
constexpr std::int64_t kBytesOfBfloat16 = 2;

// Arithmetic on numbers that are not negative. It saturates.
std::int64_t product(std::initializer_list<std::int64_t> factors) {
    std::optional<std::int64_t> all = 1;
    for (const std::int64_t factor : factors) {
        if (factor == 0) return 0;
        all = all ? checked_multiply(*all, factor) : all;
    }
    return all.value_or(kMost);
}
std::int64_t sum(std::initializer_list<std::int64_t> terms) {
    std::optional<std::int64_t> all = 0;
    for (const std::int64_t term : terms) all = all ? checked_add(*all, term) : all;
    return all.value_or(kMost);
}

std::int64_t state_bytes(const StoragePlan& plan) {
    std::int64_t bytes = 0;
    for (const auto& buffer : plan.buffers) {
        bytes = sum({bytes, product({buffer.count, static_cast<std::int64_t>(size_of(buffer.dtype))})});
    }
    return bytes;
}

// Elements that autograd keeps of each token between forward and backward.
std::int64_t kept_elements(const LlamaConfig& config, bool activation_checkpointing) {
    const std::int64_t kv_dim = config.kv_heads * config.head_dim();
    // Inputs of both norms, of the projections behind them and of attention's output, and the queries.
    const std::int64_t of_dim = 6 * config.dim + 2 * kv_dim;
    // Gate, its activation, up, and their product.
    const std::int64_t of_block = of_dim + 4 * config.hidden;
    return activation_checkpointing ? product({config.layers, config.dim}) + of_block
                                    : product({config.layers, of_block});
}

// Copies of the blocks' matrices in the format of the products, which autograd keeps as well.
std::int64_t autocast_bytes(const LlamaConfig& config, bool activation_checkpointing) {
    std::int64_t elements = 0;
    for (const auto& [shape, copies] : parameter_shapes(config)) {
        const bool of_block = shape.size() == 2 && shape[0] != config.vocabulary_size;
        if (of_block) elements = sum({elements, product({shape[0], shape[1], copies})});
    }
    return product({kBytesOfBfloat16, activation_checkpointing ? elements / config.layers : elements});
}

std::int64_t activation_bytes(const TrainOptions& options, const LlamaConfig& config) {
    constexpr std::int64_t kBytesOfTokens = 2 * 8;          // input and target
    constexpr std::int64_t kSlice = std::int64_t{1} << 24;  // logits that exist at a time, see token_loss.h
    const std::int64_t tokens = product({options.batch_size, options.sequence_length});
    const std::int64_t logits =
        std::min(product({tokens, config.vocabulary_size}), std::max(kSlice, config.vocabulary_size) / 2);
    const std::int64_t kept =
        product({tokens, kept_elements(config, options.activation_checkpointing), kBytesOfBfloat16});
    const bool casts = options.optimizer.format == Format::kFloat32;
    return sum({kept, product({tokens, kBytesOfTokens}), product({logits, kBytesOfFloat}),
                casts ? autocast_bytes(config, options.activation_checkpointing) : 0});
}

bool on_cpu(const TrainOptions& options) { return options.device.compare(0, 3, "cpu") == 0; }

}  // namespace

std::int64_t MemoryNeed::peak() const {
    return std::max({sum({weights, initial}), sum({weights, states, accumulators, gradients}),
                     sum({weights, states, accumulators, activations})});
}

MemoryNeed memory_need(const TrainOptions& options) {
    const LlamaConfig config = llama_config(options.model);
    const bool fp32 = options.optimizer.format == Format::kFloat32;
    const DType dtype = fp32 ? DType::kFloat32 : DType::kBFloat16;
    const auto element = static_cast<std::int64_t>(size_of(dtype));
    const Hyperparameters read = hyperparameters_of(options.optimizer, options.schedule.peak);

    MemoryNeed need;
    std::int64_t largest = 0;
    for (const auto& [shape, copies] : parameter_shapes(config)) {
        const std::int64_t elements = checked_numel(shape).value_or(kMost);
        largest = std::max(largest, elements);
        need.weights = sum({need.weights, product({elements, copies, element})});
        need.accumulators = sum({need.accumulators, product({elements, copies, kBytesOfFloat})});
        const Layout layout = layout_of(TensorView{nullptr, dtype, shape, {}});
        const auto plan =
            plan_storage(options.optimizer.rule, read, storage_of(options.optimizer), dtype, layout);
        need.states = sum({need.states, product({copies, state_bytes(plan)})});
    }
    need.initial = product({largest, kBytesOfFloat});
    if (!on_cpu(options)) return {need.weights, 0, 0, 0, 0, need.initial};
    // With several micro-batches, each gradient is added to its sum and freed at once.
    const bool one_by_one = options.optimizer.gradient_release || options.accumulation > 1;
    need.gradients = one_by_one ? product({largest, element}) : need.weights;
    if (options.accumulation == 1) need.accumulators = 0;
    need.activations = activation_bytes(options, config);
    // The states are made in the first step, after its forward passes.
    if (options.schedule.total_steps == 1) {
        need.activations = std::max<std::int64_t>(0, need.activations - need.states);
    }
    return need;
}

void require_memory(const TrainOptions& options, const std::optional<AvailableMemory>& available) {
    require_memory(
        memory_need(options).peak(), "the run",
        "take a smaller model, vocabulary, batch size or sequence length, activation checkpointing or "
        "gradient release, or give it more memory",
        available);
}

void require_memory(std::int64_t needed, const std::string& what, const std::string& remedy,
                    const std::optional<AvailableMemory>& available) {
    if (!available || needed <= available->bytes) return;
    throw InvalidArgument(what + " needs at least " + human_bytes(needed) + " of memory, and " +
                          available->bound + " has " + human_bytes(available->bytes) + " left; " + remedy);
}

}  // namespace flashoptim::trainer

#include "step_timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "flashoptim/quantize.h"

namespace flashoptim::app {
namespace {

constexpr std::int64_t kColumns = 1024;

/// Seconds of one call of `work`, as the mean of as many calls as take two milliseconds.
template <class Work>
double seconds_of(Work work) {
    using Clock = std::chrono::steady_clock;
    constexpr double kLeast = 2e-3;
    const auto start = Clock::now();
    for (int calls = 1;; ++calls) {
        work();
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        if (seconds >= kLeast) return seconds / calls;
    }
}

DType weight_dtype(Format format) { return format == Format::kFloat32 ? DType::kFloat32 : DType::kBFloat16; }

std::vector<std::int64_t> shape_of(std::int64_t parameters) { return {parameters / kColumns, kColumns}; }

Hyperparameters hyperparameters_of(Rule rule) {
    auto h = default_hyperparameters(rule);
    h.weight_decay = 0.01;
    h.momentum = 0.9;
    return h;
}

std::size_t state_bytes(const StoragePlan& plan) {
    std::size_t bytes = 0;
    for (const auto& buffer : plan.buffers) bytes += buffer.bytes();
    return bytes;
}

}  // namespace

struct StepContestant::State {
    Optimizer optimizer;
    std::vector<std::byte> weights, gradients;
};

StepContestant::StepContestant(Rule rule, Format format, Backend backend, int threads,
                               std::int64_t parameters) {
    OptimizerOptions options;
    options.storage.format = format;
    options.backend = backend;
    options.threads = threads;
    state_ = std::make_unique<State>(State{{rule, hyperparameters_of(rule), options}, {}, {}});

    const auto dtype = weight_dtype(format);
    const auto shape = shape_of(parameters);
    const auto count = static_cast<std::size_t>(parameters / kColumns * kColumns);
    state_->weights.resize(count * size_of(dtype));
    state_->gradients.resize(count * size_of(dtype));
    const auto id = state_->optimizer.add_parameter({state_->weights.data(), dtype, shape, {}});
    // Ordinary values, made in pieces so that large tensors need no fp32 copy of themselves.
    StoragePlan plain;
    plain.weight_dtype = dtype;
    std::vector<float> values(static_cast<std::size_t>(kColumns));
    for (std::size_t at = 0; at < count; at += values.size()) {
        for (std::size_t n = 0; n < values.size(); ++n) {
            values[n] = std::sin(0.37F * static_cast<float>(at % 7919 + n)) * 1e-2F;
        }
        split_weights(plain, values, state_->weights.data() + at * size_of(dtype), nullptr);
        split_weights(plain, values, state_->gradients.data() + at * size_of(dtype), nullptr);
    }
    state_->optimizer.set_gradient(id, {state_->gradients.data(), dtype, shape, {}});
    for (int t = 0; t < 2; ++t) state_->optimizer.step();
}
StepContestant::~StepContestant() = default;
StepContestant::StepContestant(StepContestant&&) noexcept = default;

double StepContestant::seconds() {
    return seconds_of([&] { state_->optimizer.step(); });
}

std::int64_t StepContestant::bytes_moved() const {
    const auto& plan = state_->optimizer.storage(0);
    const auto kept = state_->weights.size() + state_bytes(plan);
    return static_cast<std::int64_t>(2 * kept + state_->gradients.size());
}

std::int64_t StepContestant::bytes_of(Rule rule, Format format, std::int64_t parameters) {
    StorageOptions storage;
    storage.format = format;
    const auto dtype = weight_dtype(format);
    const auto layout = layout_of(TensorView{nullptr, dtype, shape_of(parameters), {}});
    const auto plan = plan_storage(rule, hyperparameters_of(rule), storage, dtype, layout);
    const auto weights = static_cast<std::size_t>(layout.numel) * size_of(dtype);
    return static_cast<std::int64_t>(2 * weights + state_bytes(plan));
}

BandwidthProbe::BandwidthProbe(int threads)
    : buffer_(static_cast<std::size_t>(kBytes) / sizeof(float), 1.0F), pool_(threads) {
    bytes_per_second();
}

double BandwidthProbe::bytes_per_second() {
    constexpr std::size_t kPiece = std::size_t{1} << 16U;
    const auto pieces = static_cast<std::int64_t>((buffer_.size() + kPiece - 1) / kPiece);
    const double seconds = seconds_of([&] {
        pool_.run(
            pieces,
            [](void* context, std::int64_t n) {
                auto& buffer = *static_cast<std::vector<float>*>(context);
                const auto begin = static_cast<std::size_t>(n) * kPiece;
                const auto end = std::min(begin + kPiece, buffer.size());
                for (auto at = begin; at < end; ++at) buffer[at] += 1.0F;
            },
            &buffer_);
    });
    return 2.0 * static_cast<double>(buffer_.size() * sizeof(float)) / seconds;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const auto middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

}  // namespace flashoptim::app

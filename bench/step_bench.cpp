// Times the step: parameters per second of each rule and format on every backend; AdamW in each format
// relative to AdamW in fp32, and both passes of a step relative to the fused step, in turns in one run. Never
// asserts a time.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "flashoptim/flashoptim.h"
#include "flashoptim/step.h"

namespace {

using namespace flashoptim;

constexpr std::int64_t kColumns = 1024;

/// An optimizer over one matrix and its gradient: bf16, or fp32 throughout for the fp32 format.
class Stepper {
public:
    Stepper(Rule rule, Format format, std::int64_t numel, int threads, Backend backend) {
        OptimizerOptions options;
        options.storage.format = format;
        options.threads = threads;
        options.backend = backend;
        auto hyperparameters = default_hyperparameters(rule);
        hyperparameters.momentum = 0.9;
        optimizer_ = std::make_unique<Optimizer>(rule, hyperparameters, options);
        const bool is_fp32 = format == Format::kFloat32;
        const auto dtype = is_fp32 ? DType::kFloat32 : DType::kBFloat16;
        const std::vector<std::int64_t> shape = {numel / kColumns, kColumns};
        weights_.resize(static_cast<std::size_t>(numel) * size_of(dtype));
        gradients_.resize(weights_.size());
        const auto id = optimizer_->add_parameter({weights_.data(), dtype, shape, {}});
        std::vector<float> values(static_cast<std::size_t>(numel));
        for (std::size_t n = 0; n < values.size(); ++n)
            values[n] = std::sin(0.37F * static_cast<float>(n)) * 1e-2F;
        StoragePlan plain;
        plain.weight_dtype = dtype;
        split_weights(plain, values, gradients_.data(), nullptr);
        optimizer_->set_master(id, values);
        optimizer_->set_gradient(id, {gradients_.data(), dtype, shape, {}});
    }
    void step() { optimizer_->step(); }
    double seconds() {
        const auto start = std::chrono::steady_clock::now();
        step();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

private:
    std::vector<std::byte> weights_, gradients_;
    std::unique_ptr<Optimizer> optimizer_;
};

void run(benchmark::State& state, Rule rule, Format format, std::int64_t numel, int threads,
         Backend backend) {
    Stepper stepper(rule, format, numel, threads, backend);
    stepper.step();
    for (auto _ : state) stepper.step();
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * numel);
}

/// The two passes of AdamW over one matrix: native state, 24-bit masters, gradients in bf16.
class TwoPasses {
public:
    TwoPasses(std::int64_t numel, int threads, DType direction)
        : pool_(threads),
          layout_(layout_of({nullptr, DType::kBFloat16, {numel / kColumns, kColumns}, {}}, "weight")) {
        item_.layout = &layout_;
        item_.plan = plan_storage(item_.rule, item_.hyperparameters, {}, DType::kBFloat16, layout_);
        item_.direction_dtype = direction;
        const auto size = static_cast<std::size_t>(numel);
        buffers_.resize(kMaxBuffers + 3);
        const auto memory = [&](std::size_t n, std::size_t bytes) {
            buffers_[n].resize(bytes);
            return bytes == 0 ? nullptr : buffers_[n].data();
        };
        for (int place = 0; place < kMaxBuffers; ++place) {
            item_.state.at(place) = memory(static_cast<std::size_t>(place), item_.plan.at(place).bytes());
        }
        item_.weight = memory(kMaxBuffers, size * 2);
        item_.direction = memory(kMaxBuffers + 1, size * size_of(direction));
        void* const gradient = memory(kMaxBuffers + 2, size * 2);
        item_.gradient = gradient;
        item_.gradient_dtype = DType::kBFloat16;
        StoragePlan plain;
        plain.weight_dtype = DType::kBFloat16;
        std::vector<float> values(size);
        for (std::size_t n = 0; n < size; ++n) values[n] = std::sin(0.37F * static_cast<float>(n)) * 1e-2F;
        split_weights(plain, values, gradient, nullptr);
        split_weights(item_.plan, values, item_.weight, item_.state.at(kCorrectionPlace));
    }
    void first() { update_moments({&item_, 1}, pool_); }
    void second() { apply_update({&item_, 1}, pool_); }
    void fused() { step({&item_, 1}, pool_); }

private:
    ThreadPool pool_;
    Layout layout_;
    StepItem item_;
    std::vector<std::vector<std::byte>> buffers_;
};

double seconds_of(TwoPasses& stepper, void (TwoPasses::*pass)()) {
    const auto start = std::chrono::steady_clock::now();
    (stepper.*pass)();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Both passes and the fused step, in turns. The counters are the speed of memory that each pass reaches by
/// the bytes that it must read and write, and the time of both passes over that of the fused step.
void run_two_passes(benchmark::State& state, std::int64_t numel, int threads, DType direction) {
    TwoPasses stepper(numel, threads, direction);
    double first = 0.0, second = 0.0, fused = 0.0;
    stepper.fused();
    for (auto _ : state) {
        const double of_first = seconds_of(stepper, &TwoPasses::first),
                     of_second = seconds_of(stepper, &TwoPasses::second);
        fused += seconds_of(stepper, &TwoPasses::fused);
        first += of_first;
        second += of_second;
        state.SetIterationTime(of_first + of_second);
    }
    const auto elements = static_cast<double>(numel) * static_cast<double>(state.iterations());
    const auto direction_bytes = static_cast<double>(size_of(direction));
    // Gradient; both moments with their scales, read and written. Weight and correction, read and written.
    const double first_bytes = 2.0 + 2.0 * 2.125 + direction_bytes,
                 second_bytes = 2.0 * 3.0 + direction_bytes;
    state.counters["update_moments_GB/s"] = first_bytes * elements / first * 1e-9;
    state.counters["apply_update_GB/s"] = second_bytes * elements / second * 1e-9;
    state.counters["fused_GB/s"] = (2.0 + 2.0 * 2.125 + 2.0 * 3.0) * elements / fused * 1e-9;
    state.counters["time_over_fused"] = (first + second) / fused;
}

/// AdamW in `format` and in fp32, in turns; the counter is the ratio of their speeds.
void run_ratio(benchmark::State& state, Format format, std::int64_t numel, int threads) {
    Stepper ours(Rule::kAdamW, format, numel, threads, Backend::kAutomatic);
    Stepper reference(Rule::kAdamW, Format::kFloat32, numel, threads, Backend::kAutomatic);
    double our_seconds = 0.0, reference_seconds = 0.0;
    for (auto _ : state) {
        const double mine = ours.seconds();
        reference_seconds += reference.seconds();
        our_seconds += mine;
        state.SetIterationTime(mine);
    }
    state.counters["speed_over_fp32_adamw"] = reference_seconds / our_seconds;
}

constexpr std::pair<const char*, Rule> kTimedRules[] = {
    {"sgd_momentum", Rule::kSGD}, {"adamw", Rule::kAdamW}, {"lion", Rule::kLion}};
constexpr std::pair<const char*, Format> kFormats[] = {
    {"native", Format::kNative}, {"paper", Format::kPaper}, {"fp32", Format::kFloat32}};
constexpr std::int64_t kInCache = 1 << 20, kInMemory = 1 << 26;

}  // namespace

int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    for (const auto& [format_name, format] : kFormats) {
        for (const auto& [rule_name, rule] : kTimedRules) {
            for (const auto backend : available_backends()) {
                const auto name = std::string(rule_name) + "/" + format_name + "/" +
                                  std::string(name_of(backend)) + "/1M/1 thread";
                benchmark::RegisterBenchmark(name.c_str(), run, rule, format, kInCache, 1, backend)
                    ->Unit(benchmark::kMillisecond);
            }
        }
        if (format == Format::kFloat32) continue;
        for (const auto numel : {kInCache, kInMemory}) {
            for (const int threads : {1, 2}) {
                const auto name = std::string("ratio/adamw/") + format_name + "/" +
                                  (numel == kInCache ? "1M/" : "64M/") + std::to_string(threads) +
                                  (threads == 1 ? " thread" : " threads");
                benchmark::RegisterBenchmark(name.c_str(), run_ratio, format, numel, threads)
                    ->Unit(benchmark::kMillisecond)
                    ->UseManualTime();
            }
        }
    }
    for (const auto direction : {DType::kFloat32, DType::kBFloat16}) {
        for (const auto numel : {kInCache, kInMemory}) {
            for (const int threads : {1, 2}) {
                const auto name = "two_passes/adamw/" + std::string(name_of(direction)) +
                                  (numel == kInCache ? "/1M/" : "/64M/") + std::to_string(threads) +
                                  (threads == 1 ? " thread" : " threads");
                benchmark::RegisterBenchmark(name.c_str(), run_two_passes, numel, threads, direction)
                    ->Unit(benchmark::kMillisecond)
                    ->UseManualTime();
            }
        }
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}

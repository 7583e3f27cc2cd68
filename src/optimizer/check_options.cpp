// Checks the options of an optimizer when it is made, so that the first step cannot fail for a bad option.
#include <algorithm>
#include <string>

#include "flashoptim/error.h"
#include "impl.h"

namespace flashoptim {

namespace {

void check_not_negative(std::int64_t value, const char* name) {
    if (value >= 0) return;
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ": it must be 0 or more");
}

template <class Enum>
void check_enumerator(Enum value, Enum last, const char* name) {
    if (value <= last) return;
    throw InvalidArgument(std::string(name) + " is " + std::to_string(static_cast<int>(value)) +
                          ": use an enumerator of the header");
}

}  // namespace

OptimizerOptions Optimizer::Impl::checked(Rule rule, const OptimizerOptions& options) {
    check_enumerator(options.storage.format, Format::kFloat32, "format");
    check_enumerator(options.nonfinite, NonFinite::kError, "nonfinite");
    check_enumerator(options.backend, Backend::kNeon, "backend");
    check_not_negative(options.threads, "threads");
    check_not_negative(options.storage.min_quantized_numel, "min_quantized_numel");
    check_not_negative(options.storage.min_quantized_numel_1d, "min_quantized_numel_1d");
    const TensorView any_weight{nullptr, DType::kBFloat16, {0}, {}};
    (void)plan_storage(rule, {}, options.storage, any_weight.dtype, layout_of(any_weight), "the optimizer");
    if (options.backend == Backend::kAutomatic || options.device) return options;
    const auto available = available_backends();
    if (std::find(available.begin(), available.end(), options.backend) != available.end()) return options;
    std::string names;
    for (const auto backend : available) names += (names.empty() ? "" : ", ") + std::string(name_of(backend));
    throw InvalidArgument("backend " + std::string(name_of(options.backend)) +
                          " is not available on this processor: choose one of " + names);
}

}  // namespace flashoptim

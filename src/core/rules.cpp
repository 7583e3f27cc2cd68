// The optimizers by name: what a user sets of each rule, and the ranges of it. How a rule moves a weight is in rule/.
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "flashoptim/optimizer.h"

namespace flashoptim {

void check_hyperparameters(Rule rule, const Hyperparameters& h) {
    const auto check = [](const char* name, double value, bool ok, const char* range) {
        if (ok) return;
        // The shortest text that is this value: one just out of its range must not be shown as one within.
        std::array<char, 32> text{};
        std::to_chars(text.data(), text.data() + text.size(), value);
        throw InvalidArgument(std::string(name) + " is " + text.data() + ": it must be " + range);
    };
    if (name_of(rule) == "unknown") {
        throw InvalidArgument("rule " + std::to_string(static_cast<int>(rule)) +
                              " does not exist: use an enumerator of the header");
    }
    const auto is_not_negative = [](double x) { return std::isfinite(x) && x >= 0.0; };
    check("learning_rate", h.learning_rate, is_not_negative(h.learning_rate), "finite and not negative");
    check("weight_decay", h.weight_decay, is_not_negative(h.weight_decay), "finite and not negative");
    check("initial_learning_rate", h.initial_learning_rate, is_not_negative(h.initial_learning_rate),
          "finite and not negative");
    switch (rule) {
        case Rule::kSGD:
        case Rule::kSGDW:
            check("momentum", h.momentum, h.momentum >= 0.0 && h.momentum <= 1.0, "between 0 and 1");
            check("dampening", h.dampening, h.dampening >= 0.0 && h.dampening <= 1.0, "between 0 and 1");
            if (h.nesterov && (h.momentum == 0.0 || h.dampening != 0.0)) {
                throw InvalidArgument("nesterov is set: it needs a momentum and no dampening");
            }
            break;
        case Rule::kAdam:
        case Rule::kAdamW:
            check("beta1", h.beta1, h.beta1 >= 0.0 && h.beta1 < 1.0, "at least 0 and less than 1");
            check("beta2", h.beta2, h.beta2 >= 0.0 && h.beta2 < 1.0, "at least 0 and less than 1");
            check("epsilon", h.epsilon, is_not_negative(h.epsilon), "finite and not negative");
            break;
        case Rule::kLion:
            check("beta1", h.beta1, h.beta1 >= 0.0 && h.beta1 <= 1.0, "between 0 and 1");
            check("beta2", h.beta2, h.beta2 >= 0.0 && h.beta2 <= 1.0, "between 0 and 1");
            break;
    }
    if (h.fully_decoupled && (rule == Rule::kSGD || rule == Rule::kAdam)) {
        throw InvalidArgument(
            "fully_decoupled is set: it needs a rule with decoupled weight decay (SGDW, AdamW, Lion)");
    }
    if (h.fully_decoupled && h.weight_decay != 0.0 && h.initial_learning_rate == 0.0) {
        throw InvalidArgument(
            "initial_learning_rate is 0: fully_decoupled weight decay is measured by it; set it (LibTorch: "
            "initial_lr) to the schedule's peak");
    }
    // What the rule does not read is saved, too, and text has no NaN.
    for (const auto& [name, value] :
         {std::pair("beta1", h.beta1), std::pair("beta2", h.beta2), std::pair("epsilon", h.epsilon),
          std::pair("momentum", h.momentum), std::pair("dampening", h.dampening)}) {
        check(name, value, std::isfinite(value), "finite");
    }
}

namespace {

Hyperparameters hyperparameters_of(const SGDOptions& o) {
    Hyperparameters h;
    h.learning_rate = o.learning_rate;
    h.momentum = o.momentum;
    h.dampening = o.dampening;
    h.weight_decay = o.weight_decay;
    h.nesterov = o.nesterov;
    h.maximize = o.maximize;
    h.fully_decoupled = o.fully_decoupled;
    return h;
}
template <class Options>
Hyperparameters with_betas(const Options& o) {
    Hyperparameters h;
    h.learning_rate = o.learning_rate;
    h.beta1 = o.beta1;
    h.beta2 = o.beta2;
    h.weight_decay = o.weight_decay;
    h.maximize = o.maximize;
    return h;
}
Hyperparameters hyperparameters_of(const AdamOptions& o) {
    auto h = with_betas(o);
    h.epsilon = o.epsilon;
    return h;
}
Hyperparameters hyperparameters_of(const AdamWOptions& o) {
    auto h = with_betas(o);
    h.epsilon = o.epsilon;
    h.fully_decoupled = o.fully_decoupled;
    return h;
}
Hyperparameters hyperparameters_of(const LionOptions& o) {
    auto h = with_betas(o);
    h.fully_decoupled = o.fully_decoupled;
    return h;
}

}  // namespace

SGD::SGD(const SGDOptions& rule, const OptimizerOptions& options)
    : Optimizer(Rule::kSGD, hyperparameters_of(rule), options) {}
SGDW::SGDW(const SGDOptions& rule, const OptimizerOptions& options)
    : Optimizer(Rule::kSGDW, hyperparameters_of(rule), options) {}
Adam::Adam(const AdamOptions& rule, const OptimizerOptions& options)
    : Optimizer(Rule::kAdam, hyperparameters_of(rule), options) {}
AdamW::AdamW(const AdamWOptions& rule, const OptimizerOptions& options)
    : Optimizer(Rule::kAdamW, hyperparameters_of(rule), options) {}
Lion::Lion(const LionOptions& rule, const OptimizerOptions& options)
    : Optimizer(Rule::kLion, hyperparameters_of(rule), options) {}

}  // namespace flashoptim

// The table of update rules: for each rule its name, its moments, and its hyperparameters with their ranges
// and defaults. All code that names, checks, stores, saves or converts a rule reads this table. The other
// files of this folder hold the arithmetic of the rules.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/quotient.h"

namespace flashoptim {

/// Update rules. SGD and Adam add weight decay to the gradient as an L2 term; the others decouple it.
enum class Rule : std::uint8_t { kSGD, kSGDW, kAdam, kAdamW, kLion, kAdEMAMix, kAdan };

/// The hyperparameters of all rules. Each rule reads those of its table row. Weight decay is per unit of
/// learning rate.
struct Hyperparameters {
    double learning_rate = 1e-3;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;  // added to the bias-corrected root
    double weight_decay = 0.0;
    double momentum = 0.0;
    double dampening = 0.0;
    double initial_learning_rate = 0.0;  // for fully_decoupled
    bool nesterov = false;
    bool maximize = false;
    bool fully_decoupled = false;  // decay by weight_decay * learning_rate / initial_learning_rate
    double beta3 = 0.9999;         // AdEMAMix: of the slow mean; Adan: of the squares
    double alpha = 2.0;            // weight of the slow mean
    double alpha_warmup = 0.0;     // steps in which alpha grows from 0; 0: none
    double beta3_warmup = 0.0;     // steps in which beta3 grows from beta1; 0: none
    bool no_prox = false;          // Adan: decay multiplies the old weight instead of dividing the new one

    bool operator==(const Hyperparameters&) const = default;
};

/// The scalars of one step of one tensor, each rounded to fp32 once. A rule's scalars() fills them and its
/// update reads them.
struct StepScalars {
    // Multiplies the direction, which is in carried units. Adam folds its bias correction in.
    float learning_rate = 0.0F;
    float weight_factor = 1.0F;        // decoupled weight decay
    float l2 = 0.0F;                   // coupled weight decay
    float root_scale = 1.0F;           // Adam: makes the carried root of v the bias-corrected root
    float epsilon = 0.0F;              // Adam
    float update_limit = 0.0F;         // Adam: largest |update| in carried units
    float mixed_weight = 0.0F;         // of a second mean beside the first, in carried units
    float beta1 = 0.0F, beta2 = 0.0F;  // Lion, paper rules; SGD: momentum in beta1
    float one_minus_beta1 = 1.0F, one_minus_beta2 = 1.0F;  // the same
    StepDivisor bias_correction1, bias_correction2;        // the paper's Adam
    MomentScalars moment[kMaxMoments];
    bool nesterov = false;
    bool has_momentum = false;  // whether the moments that a first step fills are filled already
    bool adds_l2 = false;       // coupled decay; the paper's rules add the term even if l2 is 0
};

/// How weights decay.
enum class Decay : std::uint8_t {
    kCoupled,    ///< an L2 term of the gradient
    kDecoupled,  ///< the old weight is multiplied by 1 - learning_rate * weight_decay
    kProximal,   ///< the new weight is divided by 1 + learning_rate * weight_decay
};

/// A field of Hyperparameters, which is a number or a flag: its name in C++, C and files, and its name in
/// torch's optimizers.
struct HyperparameterField {
    using Number = double Hyperparameters::*;
    using Flag = bool Hyperparameters::*;

    std::string_view name, torch_name;
    Number number = nullptr;
    Flag flag = nullptr;
    int torch_place = -1;  ///< index in torch's tuple of that name; -1: no tuple

    /// The value of the field in h; 0 or 1 for a flag.
    [[nodiscard]] constexpr double of(const Hyperparameters& h) const {
        return number != nullptr ? h.*number : h.*flag ? 1.0 : 0.0;
    }
    /// Sets the field in h. A flag is set by every value but 0.
    constexpr void set(Hyperparameters& h, double value) const {
        if (number != nullptr) {
            h.*number = value;
        } else {
            h.*flag = value != 0.0;
        }
    }
    constexpr bool operator==(const HyperparameterField& other) const {
        return number == other.number && flag == other.flag;
    }
};

/// The allowed values of a number. NaN and infinity are never allowed.
struct Range {
    double lowest = 0.0, highest = std::numeric_limits<double>::infinity();
    bool excludes_highest = false;

    /// Whether x is allowed.
    [[nodiscard]] constexpr bool has(double x) const {
        return x >= lowest && (excludes_highest ? x < highest : x <= highest) &&
               x <= std::numeric_limits<double>::max();
    }
};

/// A hyperparameter as one rule reads it: its default and its range. Flags default to 0.
struct HyperparameterTraits {
    /// `in_python` is the default in Python where it differs.
    constexpr HyperparameterTraits(const HyperparameterField& which, double usual = 0.0, Range values = {},
                                   std::optional<double> in_python = std::nullopt)
        : field(which), default_value(usual), range(values), python_default(in_python) {}

    HyperparameterField field;
    double default_value;
    Range range;
    /// The default in Python, if the authors' package has another one than default_value.
    std::optional<double> python_default;
};

/// A moment of a rule. Its index in the rule's list is its number everywhere; the number chooses its dither
/// salt.
struct MomentTraits {
    std::string_view name;         ///< in saved files and in torch's state
    std::string_view scales_name;  ///< name of its scales: `name` with "_scales" appended
    MomentKind kind;
    /// The moment exists only if this hyperparameter is not 0. Null: it always exists.
    HyperparameterField::Number needs = nullptr;
};

/// What a rule is.
struct RuleTraits {
    Rule rule;
    std::string_view name;  ///< in files, messages and command lines
    std::span<const MomentTraits> moments;
    std::span<const HyperparameterTraits> reads;
    Decay decay;
    bool has_paper_order = true;  ///< whether the rule supports the paper's format

    /// The rule's entry for a hyperparameter, or null if the rule does not read it.
    [[nodiscard]] constexpr const HyperparameterTraits* find(const HyperparameterField& field) const {
        for (const auto& hyperparameter : reads) {
            if (hyperparameter.field == field) return &hyperparameter;
        }
        return nullptr;
    }
    /// Whether the rule keeps moment n under these hyperparameters.
    [[nodiscard]] constexpr bool keeps(std::size_t n, const Hyperparameters& h) const {
        return n < moments.size() && (moments[n].needs == nullptr || h.*moments[n].needs != 0.0);
    }
};

namespace table {

inline constexpr HyperparameterField kLearningRate{"learning_rate", "lr", &Hyperparameters::learning_rate};
inline constexpr HyperparameterField kBeta1{"beta1", "betas", &Hyperparameters::beta1, nullptr, 0};
inline constexpr HyperparameterField kBeta2{"beta2", "betas", &Hyperparameters::beta2, nullptr, 1};
inline constexpr HyperparameterField kEpsilon{"epsilon", "eps", &Hyperparameters::epsilon};
inline constexpr HyperparameterField kWeightDecay{"weight_decay", "weight_decay",
                                                  &Hyperparameters::weight_decay};
inline constexpr HyperparameterField kMomentum{"momentum", "momentum", &Hyperparameters::momentum};
inline constexpr HyperparameterField kDampening{"dampening", "dampening", &Hyperparameters::dampening};
inline constexpr HyperparameterField kInitialLearningRate{"initial_learning_rate", "initial_lr",
                                                          &Hyperparameters::initial_learning_rate};
inline constexpr HyperparameterField kBeta3{"beta3", "betas", &Hyperparameters::beta3, nullptr, 2};
inline constexpr HyperparameterField kAlpha{"alpha", "alpha", &Hyperparameters::alpha};
inline constexpr HyperparameterField kAlphaWarmup{"alpha_warmup", "alpha_warmup",
                                                  &Hyperparameters::alpha_warmup};
inline constexpr HyperparameterField kBeta3Warmup{"beta3_warmup", "beta3_warmup",
                                                  &Hyperparameters::beta3_warmup};
inline constexpr HyperparameterField kNoProx{"no_prox", "no_prox", nullptr, &Hyperparameters::no_prox};
inline constexpr HyperparameterField kNesterov{"nesterov", "nesterov", nullptr, &Hyperparameters::nesterov};
inline constexpr HyperparameterField kMaximize{"maximize", "maximize", nullptr, &Hyperparameters::maximize};
inline constexpr HyperparameterField kFullyDecoupled{"fully_decoupled", "decouple_lr", nullptr,
                                                     &Hyperparameters::fully_decoupled};

/// kBelowOne is for decay rates with a bias correction, which divides by 1 - beta^t.
inline constexpr Range kNotNegative{}, kUpToOne{0.0, 1.0}, kBelowOne{0.0, 1.0, true};

inline constexpr HyperparameterTraits kSgd[] = {
    {kLearningRate, 1e-3},       {kWeightDecay}, {kMomentum, 0.0, kUpToOne},
    {kDampening, 0.0, kUpToOne}, {kNesterov},    {kMaximize}};
inline constexpr HyperparameterTraits kSgdw[] = {{kLearningRate, 1e-3},
                                                 {kWeightDecay},
                                                 {kMomentum, 0.0, kUpToOne},
                                                 {kDampening, 0.0, kUpToOne},
                                                 {kInitialLearningRate},
                                                 {kNesterov},
                                                 {kMaximize},
                                                 {kFullyDecoupled}};
inline constexpr HyperparameterTraits kAdam[] = {
    {kLearningRate, 1e-3}, {kBeta1, 0.9, kBelowOne}, {kBeta2, 0.999, kBelowOne},
    {kEpsilon, 1e-8},      {kWeightDecay},           {kMaximize}};
inline constexpr HyperparameterTraits kAdamw[] = {
    {kLearningRate, 1e-3}, {kBeta1, 0.9, kBelowOne}, {kBeta2, 0.999, kBelowOne},
    {kEpsilon, 1e-8},      {kWeightDecay, 1e-2},     {kInitialLearningRate},
    {kMaximize},           {kFullyDecoupled}};
inline constexpr HyperparameterTraits kLion[] = {{kLearningRate, 1e-4, kNotNegative, 1e-3},
                                                 {kBeta1, 0.9, kUpToOne},
                                                 {kBeta2, 0.99, kUpToOne},
                                                 {kWeightDecay},
                                                 {kInitialLearningRate},
                                                 {kMaximize},
                                                 {kFullyDecoupled}};
inline constexpr HyperparameterTraits kAdemamix[] = {{kLearningRate, 1e-3},
                                                     {kBeta1, 0.9, kBelowOne},
                                                     {kBeta2, 0.999, kBelowOne},
                                                     {kBeta3, 0.9999, kBelowOne},
                                                     {kEpsilon, 1e-8},
                                                     {kWeightDecay},
                                                     {kInitialLearningRate},
                                                     {kAlpha, 2.0},
                                                     {kAlphaWarmup},
                                                     {kBeta3Warmup},
                                                     {kMaximize},
                                                     {kFullyDecoupled}};
inline constexpr HyperparameterTraits kAdan[] = {{kLearningRate, 1e-3},     {kBeta1, 0.98, kBelowOne},
                                                 {kBeta2, 0.92, kBelowOne}, {kBeta3, 0.99, kBelowOne},
                                                 {kEpsilon, 1e-8},          {kWeightDecay},
                                                 {kInitialLearningRate},    {kMaximize},
                                                 {kFullyDecoupled},         {kNoProx}};

inline constexpr MomentTraits kExpAvg{"exp_avg", "exp_avg_scales", MomentKind::kSigned};
inline constexpr MomentTraits kExpAvgSq{"exp_avg_sq", "exp_avg_sq_scales", MomentKind::kSquared};
inline constexpr MomentTraits kMomentumMoments[] = {
    {"momentum_buffer", "momentum_buffer_scales", MomentKind::kSigned, &Hyperparameters::momentum}};
inline constexpr MomentTraits kAdamMoments[] = {kExpAvg, kExpAvgSq};
inline constexpr MomentTraits kLionMoments[] = {kExpAvg};
inline constexpr MomentTraits kAdemamixMoments[] = {
    {"exp_avg_fast", "exp_avg_fast_scales", MomentKind::kSigned},
    kExpAvgSq,
    {"exp_avg_slow", "exp_avg_slow_scales", MomentKind::kSlow}};
inline constexpr MomentTraits kAdanMoments[] = {kExpAvg,
                                                kExpAvgSq,
                                                {"exp_avg_diff", "exp_avg_diff_scales", MomentKind::kSigned},
                                                {"pre_grad", "pre_grad_scales", MomentKind::kGradient}};

}  // namespace table

/// Every field of Hyperparameters, in its order.
inline constexpr std::array kHyperparameterFields = {
    table::kLearningRate, table::kBeta1,       table::kBeta2,          table::kEpsilon,
    table::kWeightDecay,  table::kMomentum,    table::kDampening,      table::kInitialLearningRate,
    table::kNesterov,     table::kMaximize,    table::kFullyDecoupled, table::kBeta3,
    table::kAlpha,        table::kAlphaWarmup, table::kBeta3Warmup,    table::kNoProx};

/// Every rule, in the order of the enumerators.
inline constexpr std::array kRules = {
    RuleTraits{Rule::kSGD, "SGD", table::kMomentumMoments, table::kSgd, Decay::kCoupled},
    RuleTraits{Rule::kSGDW, "SGDW", table::kMomentumMoments, table::kSgdw, Decay::kDecoupled},
    RuleTraits{Rule::kAdam, "Adam", table::kAdamMoments, table::kAdam, Decay::kCoupled},
    RuleTraits{Rule::kAdamW, "AdamW", table::kAdamMoments, table::kAdamw, Decay::kDecoupled},
    RuleTraits{Rule::kLion, "Lion", table::kLionMoments, table::kLion, Decay::kDecoupled},
    RuleTraits{Rule::kAdEMAMix, "AdEMAMix", table::kAdemamixMoments, table::kAdemamix, Decay::kDecoupled,
               false},
    RuleTraits{Rule::kAdan, "Adan", table::kAdanMoments, table::kAdan, Decay::kProximal, false}};

constexpr int kRuleCount = static_cast<int>(kRules.size());
/// Whether a value is one of the enumerators.
constexpr bool is_known(Rule rule) { return static_cast<std::size_t>(rule) < kRules.size(); }
/// The table row of a known rule.
constexpr const RuleTraits& traits_of(Rule rule) { return kRules[static_cast<std::size_t>(rule)]; }
/// The defaults of a rule. Fields that the rule does not read have the defaults of Hyperparameters.
constexpr Hyperparameters default_hyperparameters(Rule rule) {
    Hyperparameters h;
    for (const auto& field : kHyperparameterFields) {
        const auto* const read = traits_of(rule).find(field);
        if (read != nullptr) field.set(h, read->default_value);
    }
    return h;
}

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The classes with a rule's arithmetic: in this project's order of operations and in the paper's order (void
/// if the rule has none). The Without classes are for parameters that lack the rule's optional moments.
template <class Native_, class Paper_, class NativeWithout_ = Native_, class PaperWithout_ = Paper_>
struct RuleKernels {
    using Native = Native_;
    using Paper = Paper_;
    using NativeWithout = NativeWithout_;
    using PaperWithout = PaperWithout_;
};
/// The RuleKernels of one rule. The rule's own file specialises it.
template <Rule kRule>
struct KernelsOf;

/// base^exponent by squaring, for exponent >= 0. IEEE products only, so host and device give the same bits.
FLASHOPTIM_INLINE double power(double base, std::int64_t exponent) {
    double result = 1.0;
    for (auto bits = static_cast<std::uint64_t>(exponent); bits != 0; bits >>= 1U) {
        if ((bits & 1U) != 0) result *= base;
        base *= base;
    }
    return result;
}

/// The fraction of a weight that decoupled decay removes in one step: weight_decay * learning_rate, or if
/// fully_decoupled is set, weight_decay * learning_rate / initial_learning_rate.
FLASHOPTIM_INLINE double decay_per_step(const Hyperparameters& h) {
    if (!h.fully_decoupled) return h.weight_decay * h.learning_rate;
    return h.initial_learning_rate > 0.0 ? h.weight_decay * (h.learning_rate / h.initial_learning_rate) : 0.0;
}

/// What proximal decay multiplies the new weight by, so the old weight and the update; 1 for other decay.
FLASHOPTIM_INLINE double proximal_factor(const Hyperparameters& h, Decay decay) {
    return decay == Decay::kProximal ? 1.0 / (1.0 + decay_per_step(h)) : 1.0;
}

/// Weight decay in this project's order of operations: the factor is computed in double and rounded once. A
/// rule with proximal decay multiplies its learning rate by proximal_factor() too.
FLASHOPTIM_INLINE void set_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kProximal) {
        k.weight_factor = static_cast<float>(proximal_factor(h, decay));
    } else if (decay == Decay::kDecoupled) {
        k.weight_factor = static_cast<float>(1.0 - decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}
/// Weight decay in the order of operations of the paper's authors: the product is rounded first.
FLASHOPTIM_INLINE void set_paper_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kDecoupled) {
        k.weight_factor = 1.0F - static_cast<float>(decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}

/// The weight after decay and update: w * weight_factor - learning_rate * direction. `direction` is in
/// carried units.
template <class L>
FLASHOPTIM_INLINE typename L::Float moved(typename L::Float w, typename L::Float direction,
                                          const StepScalars& k) {
    return L::fma(direction, L::broadcast(-k.learning_rate), w * k.weight_factor);
}

/// Base of the rules whose decay never changes the gradient.
struct GradientWithoutDecay {
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g,
                                                                  typename L::Float /*w*/,
                                                                  const StepScalars& /*k*/) {
        return g;
    }
};

/// What a carried mean of decay `beta` is multiplied by to be the mean: 1 - beta if the format carries scaled
/// moments.
template <class Format>
FLASHOPTIM_INLINE double carry_of(double beta) {
    return Format::kCarriesScaled ? 1.0 - beta : 1.0;
}
/// The decay of a carried mean beside a new term of weight 1.
template <class Format>
FLASHOPTIM_INLINE double carried_decay(double beta) {
    return Format::kCarriesScaled ? beta / (1.0 - beta) : beta;
}

/// The gradient plus its L2 term.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_l2(typename L::Float g, typename L::Float w, const StepScalars& k) {
    return k.l2 == 0.0F ? g : L::fma(w, L::broadcast(k.l2), g);
}
/// The gradient plus its L2 term with two roundings, as the paper's authors add it. It is added even if l2 is
/// 0: an Inf or NaN weight then makes the moments NaN, as in their code.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_paper_l2(typename L::Float g, typename L::Float w,
                                                 const StepScalars& k) {
    return k.adds_l2 ? g + w * k.l2 : g;
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif

// The table of update rules: for each rule its name, its moments, and its hyperparameters with their ranges
// and defaults. All code that names, checks, stores, saves or converts a rule reads this table. The other
// files of this folder have the arithmetic of the rules.
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

/// SGDW and AdamW decay weights apart from the gradient; SGD and Adam add an L2 term to it.
enum class Rule : std::uint8_t { kSGD, kSGDW, kAdam, kAdamW, kLion };

/// The hyperparameters of all rules; a rule reads its own. Weight decay is per unit of learning rate. The
/// numbers come first, then the flags.
struct Hyperparameters {
    double learning_rate = 1e-3;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;  // outside the root and after the bias correction
    double weight_decay = 0.0;
    double momentum = 0.0;
    double dampening = 0.0;
    double initial_learning_rate = 0.0;  // for fully_decoupled
    bool nesterov = false;
    bool maximize = false;
    bool fully_decoupled = false;  // weights decay by weight_decay * learning_rate / initial_learning_rate

    bool operator==(const Hyperparameters&) const = default;
};

/// The scalars of one step of one tensor, rounded to fp32 once. Filled by a rule's
/// `scalars`, read by its `update`.
struct StepScalars {
    // Of the update in carried units; the bias correction is folded in where the rule says so.
    float learning_rate = 0.0F;
    float weight_factor = 1.0F;        // decoupled weight decay
    float l2 = 0.0F;                   // coupled weight decay
    float root_scale = 1.0F;           // Adam: carried root of v to its bias-corrected root
    float epsilon = 0.0F;              // Adam
    float update_limit = 0.0F;         // Adam: largest |update| in carried units
    float beta1 = 0.0F, beta2 = 0.0F;  // Lion and the rules of the paper; SGD's momentum is beta1
    float one_minus_beta1 = 1.0F, one_minus_beta2 = 1.0F;  // the same
    StepDivisor bias_correction1, bias_correction2;        // the paper's Adam
    MomentScalars moment[kMaxMoments];
    bool nesterov = false;
    bool has_momentum = false;  // SGD: whether a momentum buffer exists already
    bool adds_l2 = false;       // whether decay is coupled; the paper's rules add its term also where it is 0
};

/// Whether weights decay apart from the gradient, or an L2 term is added to it.
enum class Decay : std::uint8_t { kCoupled, kDecoupled };

/// A field of Hyperparameters: its name in C++, C and files, and its name in torch's optimizers. It is a
/// number or a flag.
struct HyperparameterField {
    using Number = double Hyperparameters::*;
    using Flag = bool Hyperparameters::*;

    std::string_view name, torch_name;
    Number number = nullptr;
    Flag flag = nullptr;
    int torch_place = -1;  ///< in torch's tuple of that name; -1: it is no tuple

    /// Its value; 0 or 1 for a flag.
    [[nodiscard]] constexpr double of(const Hyperparameters& h) const {
        return number != nullptr ? h.*number : h.*flag ? 1.0 : 0.0;
    }
    /// Sets its value. Every value but 0 sets a flag.
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

/// The values that a number may have, never NaN or infinite.
struct Range {
    double lowest = 0.0, highest = std::numeric_limits<double>::infinity();
    bool excludes_highest = false;

    /// Whether x is in the range.
    [[nodiscard]] constexpr bool has(double x) const {
        return x >= lowest && (excludes_highest ? x < highest : x <= highest) &&
               x <= std::numeric_limits<double>::max();
    }
};

/// A hyperparameter as one rule reads it. Range and defaults of a flag are 0 and 1.
struct HyperparameterTraits {
    /// A field, its default, its values, and its default in Python where that is another.
    constexpr HyperparameterTraits(const HyperparameterField& which, double usual = 0.0, Range values = {},
                                   std::optional<double> in_python = std::nullopt)
        : field(which), default_value(usual), range(values), python_default(in_python) {}

    HyperparameterField field;
    double default_value;
    Range range;
    /// The default in Python, if the authors' package has another one there.
    std::optional<double> python_default;
};

/// A moment of a rule. Its place in the rule's list is its number everywhere and chooses its dither.
struct MomentTraits {
    std::string_view name;         ///< in saved files and in torch's state
    std::string_view scales_name;  ///< of its groups' scales: the same with "_scales"
    MomentKind kind;
    /// The moment exists only while this is not 0; null: always.
    HyperparameterField::Number needs = nullptr;
};

/// What a rule is.
struct RuleTraits {
    Rule rule;
    std::string_view name;  ///< as files, messages and command lines spell it
    std::span<const MomentTraits> moments;
    std::span<const HyperparameterTraits> reads;
    Decay decay;
    bool has_paper_order = true;  ///< whether it can be stepped in the paper's format

    /// Its row for a hyperparameter, or null if it does not read it.
    [[nodiscard]] constexpr const HyperparameterTraits* find(const HyperparameterField& field) const {
        for (const auto& hyperparameter : reads) {
            if (hyperparameter.field == field) return &hyperparameter;
        }
        return nullptr;
    }
    /// Whether it keeps moment n under these hyperparameters.
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
inline constexpr HyperparameterField kNesterov{"nesterov", "nesterov", nullptr, &Hyperparameters::nesterov};
inline constexpr HyperparameterField kMaximize{"maximize", "maximize", nullptr, &Hyperparameters::maximize};
inline constexpr HyperparameterField kFullyDecoupled{"fully_decoupled", "decouple_lr", nullptr,
                                                     &Hyperparameters::fully_decoupled};

/// Of one that may be 1, and of one of which a bias correction is formed.
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

inline constexpr MomentTraits kExpAvg{"exp_avg", "exp_avg_scales", MomentKind::kSigned};
inline constexpr MomentTraits kExpAvgSq{"exp_avg_sq", "exp_avg_sq_scales", MomentKind::kSquared};
inline constexpr MomentTraits kMomentumMoments[] = {
    {"momentum_buffer", "momentum_buffer_scales", MomentKind::kSigned, &Hyperparameters::momentum}};
inline constexpr MomentTraits kAdamMoments[] = {kExpAvg, kExpAvgSq};
inline constexpr MomentTraits kLionMoments[] = {kExpAvg};

}  // namespace table

/// Every field of Hyperparameters, in their order.
inline constexpr std::array kHyperparameterFields = {
    table::kLearningRate, table::kBeta1,    table::kBeta2,         table::kEpsilon,
    table::kWeightDecay,  table::kMomentum, table::kDampening,     table::kInitialLearningRate,
    table::kNesterov,     table::kMaximize, table::kFullyDecoupled};

/// Every rule, in the order of the enumerators.
inline constexpr std::array kRules = {
    RuleTraits{Rule::kSGD, "SGD", table::kMomentumMoments, table::kSgd, Decay::kCoupled},
    RuleTraits{Rule::kSGDW, "SGDW", table::kMomentumMoments, table::kSgdw, Decay::kDecoupled},
    RuleTraits{Rule::kAdam, "Adam", table::kAdamMoments, table::kAdam, Decay::kCoupled},
    RuleTraits{Rule::kAdamW, "AdamW", table::kAdamMoments, table::kAdamw, Decay::kDecoupled},
    RuleTraits{Rule::kLion, "Lion", table::kLionMoments, table::kLion, Decay::kDecoupled}};

constexpr int kRuleCount = static_cast<int>(kRules.size());
/// Whether a value is one of the enumerators.
constexpr bool is_known(Rule rule) { return static_cast<std::size_t>(rule) < kRules.size(); }
/// What a known rule is.
constexpr const RuleTraits& traits_of(Rule rule) { return kRules[static_cast<std::size_t>(rule)]; }
/// The defaults of the hyperparameters that a rule reads; the others are as Hyperparameters has them.
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

/// The classes that step a rule: in our order of operations and in the paper's (void: it has none), and the
/// same for the case that the moments which it may be without are not there.
template <class Native_, class Paper_, class NativeWithout_ = Native_, class PaperWithout_ = Paper_>
struct RuleKernels {
    using Native = Native_;
    using Paper = Paper_;
    using NativeWithout = NativeWithout_;
    using PaperWithout = PaperWithout_;
};
/// Those of one rule: each file of this folder says it of its own.
template <Rule kRule>
struct KernelsOf;

/// base^exponent by squaring: IEEE products only, the same on host and device. exponent >= 0.
FLASHOPTIM_INLINE double power(double base, std::int64_t exponent) {
    double result = 1.0;
    for (auto bits = static_cast<std::uint64_t>(exponent); bits != 0; bits >>= 1U) {
        if ((bits & 1U) != 0) result *= base;
        base *= base;
    }
    return result;
}

/// What decoupled decay takes from a weight in one step: weight_decay * learning_rate, or where the decay is
/// decoupled from the schedule's peak too, weight_decay * learning_rate / initial_learning_rate.
FLASHOPTIM_INLINE double decay_per_step(const Hyperparameters& h) {
    if (!h.fully_decoupled) return h.weight_decay * h.learning_rate;
    return h.initial_learning_rate > 0.0 ? h.weight_decay * (h.learning_rate / h.initial_learning_rate) : 0.0;
}

/// Weight decay in our order: the factor is formed in double and rounded once.
FLASHOPTIM_INLINE void set_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kDecoupled) {
        k.weight_factor = static_cast<float>(1.0 - decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}
/// Weight decay in the order of the paper's authors: the product is rounded first.
FLASHOPTIM_INLINE void set_paper_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kDecoupled) {
        k.weight_factor = 1.0F - static_cast<float>(decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}

/// The weight moved along `direction`, which is what a rule would subtract at a learning
/// rate of 1, in carried units.
template <class L>
FLASHOPTIM_INLINE typename L::Float moved(typename L::Float w, typename L::Float direction,
                                          const StepScalars& k) {
    return L::fma(direction, L::broadcast(-k.learning_rate), w * k.weight_factor);
}

/// The gradient with its L2 term.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_l2(typename L::Float g, typename L::Float w, const StepScalars& k) {
    return k.l2 == 0.0F ? g : L::fma(w, L::broadcast(k.l2), g);
}
/// The same in two roundings, and with a decay of 0 too: a weight that is Inf or NaN
/// reaches the moments that way.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_paper_l2(typename L::Float g, typename L::Float w,
                                                 const StepScalars& k) {
    return k.adds_l2 ? g + w * k.l2 : g;
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif

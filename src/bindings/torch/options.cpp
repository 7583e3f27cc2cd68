// Saves, compares and inherits the options of parameter groups, using the table of rules. What an option does
// is not here.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "flashoptim/libtorch.h"

namespace flashoptim::libtorch {

namespace {

[[noreturn]] void refuse_missing(const std::string& name) {
    throw FormatError("optimizer archive: option " + name +
                      " is missing; the archive is damaged or of another optimizer");
}

std::int64_t number_up_to(std::int64_t last, const c10::IValue& from, const char* name) {
    const auto number = from.toInt();
    if (number >= 0 && number <= last) return number;
    throw FormatError(std::string("optimizer archive: option ") + name + " is " + std::to_string(number) +
                      ", which this version does not know; load it with the version that wrote it");
}

/// Calls visit(name in torch, fields) for the hyperparameters that a rule reads. Those that torch stores in
/// one tuple come in one call.
template <class Visit>
void for_each_option(const RuleTraits& traits, Visit visit) {
    std::vector<HyperparameterField> fields;
    for (std::size_t n = 0; n < traits.reads.size(); ++n) {
        const auto& field = traits.reads[n].field;
        fields.push_back(field);
        const bool goes_on = n + 1 < traits.reads.size() && field.torch_place >= 0 &&
                             traits.reads[n + 1].field.torch_name == field.torch_name;
        if (goes_on) continue;
        visit(std::string(field.torch_name), std::as_const(fields));
        fields.clear();
    }
}

c10::IValue to_ivalue(const HyperparameterField& field, const Hyperparameters& h) {
    if (field.flag != nullptr) return h.*field.flag;
    return h.*field.number;
}
void from_ivalue(const c10::IValue& from, const HyperparameterField& field, Hyperparameters& h) {
    if (field.flag != nullptr) {
        h.*field.flag = from.toBool();
    } else {
        h.*field.number = from.toDouble();
    }
}

bool same(const std::vector<HyperparameterField>& fields, const Hyperparameters& a,
          const Hyperparameters& b) {
    // NaN is refused elsewhere. Here it only means that the value was changed.
    return std::ranges::all_of(fields, [&](const auto& field) { return field.of(a) == field.of(b); });
}

/// Calls visit(name, member of each object) for the options that every rule has besides its hyperparameters.
template <class Visit, class... Storage>
void for_each_storage_option(Visit visit, Storage&... storage) {
    visit("format", storage.format...);
    visit("master_weight_bits", storage.master_weight_bits...);
    visit("quantize", storage.quantize...);
    visit("min_quantized_numel", storage.min_quantized_numel...);
    visit("min_quantized_numel_1d", storage.min_quantized_numel_1d...);
}

template <class T>
c10::IValue to_ivalue(const T& value) {
    if constexpr (std::is_enum_v<T> || std::is_same_v<T, int>) {
        return static_cast<std::int64_t>(value);
    } else {
        return value;
    }
}
void from_ivalue(const c10::IValue& from, const char* name, Format& to) {
    to = static_cast<Format>(number_up_to(static_cast<int>(Format::kFloat32), from, name));
}
void from_ivalue(const c10::IValue& from, const char* name, NonFinite& to) {
    to = static_cast<NonFinite>(number_up_to(static_cast<int>(NonFinite::kError), from, name));
}
void from_ivalue(const c10::IValue& from, const char* name, int& to) {
    to = static_cast<int>(number_up_to(64, from, name));
}
void from_ivalue(const c10::IValue& from, const char* /*name*/, bool& to) { to = from.toBool(); }
void from_ivalue(const c10::IValue& from, const char* /*name*/, std::int64_t& to) { to = from.toInt(); }

}  // namespace

std::vector<std::pair<std::string, c10::IValue>> FlashOptions::values() const {
    std::vector<std::pair<std::string, c10::IValue>> all;
    for_each_option(traits_of(rule_), [&](const std::string& name, const auto& fields) {
        std::vector<c10::IValue> numbers;
        for (const auto& field : fields) numbers.push_back(to_ivalue(field, hyperparameters_));
        const bool is_tuple = fields.front().torch_place >= 0;
        all.emplace_back(name, is_tuple ? c10::ivalue::Tuple::create(std::move(numbers)) : numbers.front());
    });
    for_each_storage_option(
        [&](const char* name, const auto& value) { all.emplace_back(name, to_ivalue(value)); }, storage_);
    all.emplace_back("nonfinite", to_ivalue(nonfinite_));
    all.emplace_back("check_gradients", check_gradients_);
    return all;
}

void FlashOptions::set_values(
    const std::function<std::optional<c10::IValue>(const std::string& name)>& read) {
    const auto value_of = [&](const std::string& name) {
        const auto value = read(name);
        if (!value) refuse_missing(name);
        return *value;
    };
    std::vector<std::string_view> all;
    for_each_option(traits_of(rule_), [&](const std::string& name, const auto& fields) {
        const auto value = value_of(name);
        all.push_back(fields.front().torch_name);
        if (fields.front().torch_place < 0) return from_ivalue(value, fields.front(), hyperparameters_);
        const auto tuple = value.toTuple();
        if (tuple->elements().size() != fields.size()) refuse_missing(name);
        for (std::size_t n = 0; n < fields.size(); ++n) {
            from_ivalue(tuple->elements()[n], fields[n], hyperparameters_);
        }
    });
    for_each_storage_option(
        [&](const char* name, auto& value) {
            from_ivalue(value_of(name), name, value);
            all.emplace_back(name);
        },
        storage_);
    from_ivalue(value_of("nonfinite"), "nonfinite", nonfinite_);
    from_ivalue(value_of("check_gradients"), "check_gradients", check_gradients_);
    all.insert(all.end(), {"nonfinite", "check_gradients"});
    set_ = std::move(all);
}

void FlashOptions::serialize(torch::serialize::InputArchive& archive) {
    set_values([&](const std::string& name) {
        c10::IValue value;
        return archive.try_read(name, value) ? std::optional(value) : std::nullopt;
    });
}

void FlashOptions::serialize(torch::serialize::OutputArchive& archive) const {
    for (const auto& [name, value] : values()) archive.write(name, value);
}

bool FlashOptions::operator==(const FlashOptions& other) const {
    bool equal = rule_ == other.rule_ && nonfinite_ == other.nonfinite_ &&
                 check_gradients_ == other.check_gradients_ && hyperparameters_ == other.hyperparameters_;
    for_each_storage_option(
        [&](const char* /*name*/, const auto& mine, const auto& theirs) { equal = equal && mine == theirs; },
        storage_, other.storage_);
    return equal;
}

bool FlashOptions::is_own(std::string_view name) const { return std::ranges::find(set_, name) != set_.end(); }

void FlashOptions::inherit(const torch::optim::OptimizerOptions& defaults) {
    const auto* from = dynamic_cast<const FlashOptions*>(&defaults);
    if (from == nullptr || from->rule_ != rule_) {
        throw InvalidArgument(
            "options of a parameter group are of another optimizer; give each group the optimizer's own "
            "options");
    }
    const auto untouched = default_hyperparameters(rule_);
    const auto take = [&](std::string_view name, bool is_changed, const auto& copy) {
        if (is_own(name) || is_changed) return;
        copy();
        if (from->is_own(name)) set_.push_back(*std::ranges::find(from->set_, name));
    };
    for_each_option(traits_of(rule_), [&](const std::string& name, const auto& fields) {
        take(name, !same(fields, hyperparameters_, untouched), [&] {
            for (const auto& field : fields) field.set(hyperparameters_, field.of(from->hyperparameters_));
        });
    });
    const StorageOptions usual;
    for_each_storage_option([&](const char* name, auto& mine, const auto& theirs,
                                const auto& initial) { take(name, mine != initial, [&] { mine = theirs; }); },
                            storage_, from->storage_, usual);
    take("nonfinite", nonfinite_ != NonFinite::kSkipElement, [&] { nonfinite_ = from->nonfinite_; });
    take("check_gradients", !check_gradients_, [&] { check_gradients_ = from->check_gradients_; });
}

void FlashOptions::set_hyperparameters(const Hyperparameters& hyperparameters) {
    for (const auto& read : traits_of(rule_).reads) {
        read.field.set(hyperparameters_, read.field.of(hyperparameters));
    }
}

void FlashOptions::remember_first_learning_rate() {
    if (traits_of(rule_).find(table::kInitialLearningRate) == nullptr) return;
    auto& first = hyperparameters_.initial_learning_rate;
    if (first == 0.0) first = hyperparameters_.learning_rate;
}

AnyOptions::AnyOptions(Rule rule)
    : AnyOptions(rule, default_hyperparameters(is_known(rule) ? rule : Rule{})) {}
AnyOptions::AnyOptions(Rule rule, const Hyperparameters& hyperparameters)
    : CommonOptions(is_known(rule) ? rule : Rule{}) {
    if (!is_known(rule)) {
        throw InvalidArgument("rule " + std::to_string(static_cast<int>(rule)) +
                              " does not exist: use an enumerator of the header");
    }
    set_hyperparameters(hyperparameters);
}

}  // namespace flashoptim::libtorch

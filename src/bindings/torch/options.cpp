// Options of the optimizers: their fields, listed once, and all that follows from the list (saving, comparing, inheriting).
// What an option does never stands here.
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "flashoptim/libtorch.h"

namespace flashoptim::libtorch {

template <class T>
struct Field {
    const char* name;
    T& option;  // Option<...>, const or not
};
template <class T>
Field(const char*, T&) -> Field<T>;

/// The fields of every options type, in the order of its declaration.
struct OptionFields {
    template <class Options>
    static auto of(Options& o) {
        using Plain = std::remove_const_t<Options>;
        auto common =
            std::tuple(Field{"lr", o.lr_}, Field{"weight_decay", o.weight_decay_},
                       Field{"maximize", o.maximize_}, Field{"format", o.format_},
                       Field{"master_weight_bits", o.master_weight_bits_}, Field{"quantize", o.quantize_},
                       Field{"nonfinite", o.nonfinite_}, Field{"check_gradients", o.check_gradients_},
                       Field{"min_quantized_numel", o.min_quantized_numel_},
                       Field{"min_quantized_numel_1d", o.min_quantized_numel_1d_});
        const auto momentum = [&o] {
            if constexpr (requires { o.momentum(); }) {
                return std::tuple(Field{"momentum", o.momentum_}, Field{"dampening", o.dampening_},
                                  Field{"nesterov", o.nesterov_});
            } else if constexpr (requires { o.eps(); }) {
                return std::tuple(Field{"betas", o.betas_}, Field{"eps", o.eps_});
            } else {
                return std::tuple(Field{"betas", o.betas_});
            }
        };
        const auto decay = [&o] {
            if constexpr (requires { o.decouple_lr(); }) {
                return std::tuple(Field{"decouple_lr", o.decouple_lr_}, Field{"initial_lr", o.initial_lr_});
            } else {
                return std::tuple<>();
            }
        };
        static_assert(std::is_base_of_v<FlashOptions, Plain>);
        return std::tuple_cat(common, momentum(), decay());
    }
};

namespace {

template <class T>
c10::IValue to_ivalue(const T& value) {
    if constexpr (std::is_enum_v<T> || std::is_same_v<T, int>) {
        return static_cast<std::int64_t>(value);
    } else {
        return value;
    }
}

template <class T>
void from_ivalue(const c10::IValue& from, const std::string& name, T& to) {
    const auto out_of_range = [&](std::int64_t number) {
        return FormatError("optimizer archive: option " + name + " is " + std::to_string(number) +
                           ", which this version does not know; load it with the version that wrote it");
    };
    if constexpr (std::is_enum_v<T>) {
        const auto number = from.toInt();
        constexpr std::int64_t kLast = std::is_same_v<T, Format> ? static_cast<int>(Format::kFloat32)
                                                                 : static_cast<int>(NonFinite::kError);
        if (number < 0 || number > kLast) throw out_of_range(number);
        to = static_cast<T>(number);
    } else if constexpr (std::is_same_v<T, int>) {
        const auto number = from.toInt();
        if (number < 0 || number > 64) throw out_of_range(number);
        to = static_cast<int>(number);
    } else {
        to = from.to<T>();
    }
}

/// Calls function(field, other field, ...) for each field of options of one type.
template <class Function, class... Options>
void for_each_field(const Function& function, Options&... options) {
    constexpr auto kCount = std::tuple_size_v<decltype(OptionFields::of(std::get<0>(std::tie(options...))))>;
    [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
        const auto call = [&]<std::size_t kField>(std::integral_constant<std::size_t, kField>) {
            function(std::get<kField>(OptionFields::of(options))...);
        };
        (call(std::integral_constant<std::size_t, kIndex>()), ...);
    }(std::make_index_sequence<kCount>());
}

}  // namespace

template <class Self>
std::vector<std::pair<std::string, c10::IValue>> CommonOptions<Self>::values() const {
    std::vector<std::pair<std::string, c10::IValue>> all;
    for_each_field([&](auto field) { all.emplace_back(field.name, to_ivalue(field.option.value)); },
                   static_cast<const Self&>(*this));
    return all;
}

template <class Self>
void CommonOptions<Self>::set_values(
    const std::function<std::optional<c10::IValue>(const std::string& name)>& read) {
    for_each_field(
        [&](auto field) {
            const auto value = read(field.name);
            if (!value) {
                throw FormatError(std::string("optimizer archive: option ") + field.name +
                                  " is missing; the archive is damaged or of another optimizer");
            }
            from_ivalue(*value, field.name, field.option.value);
            field.option.is_set = true;
        },
        static_cast<Self&>(*this));
}

template <class Self>
void CommonOptions<Self>::serialize(torch::serialize::InputArchive& archive) {
    set_values([&](const std::string& name) {
        c10::IValue value;
        return archive.try_read(name, value) ? std::optional(value) : std::nullopt;
    });
}

template <class Self>
void CommonOptions<Self>::serialize(torch::serialize::OutputArchive& archive) const {
    for (const auto& [name, value] : values()) archive.write(name, value);
}

template <class Self>
std::unique_ptr<torch::optim::OptimizerOptions> CommonOptions<Self>::clone() const {
    return std::make_unique<Self>(static_cast<const Self&>(*this));
}

template <class Self>
bool CommonOptions<Self>::operator==(const CommonOptions& other) const {
    bool equal = true;
    for_each_field([&](auto mine, auto theirs) { equal = equal && mine.option.value == theirs.option.value; },
                   static_cast<const Self&>(*this), static_cast<const Self&>(other));
    return equal;
}

template <class Self>
Hyperparameters CommonOptions<Self>::hyperparameters() const {
    const auto& self = static_cast<const Self&>(*this);
    Hyperparameters h;
    h.learning_rate = lr();
    h.weight_decay = weight_decay();
    h.maximize = maximize();
    if constexpr (requires { self.betas(); }) std::tie(h.beta1, h.beta2) = self.betas();
    if constexpr (requires { self.eps(); }) h.epsilon = self.eps();
    if constexpr (requires { self.momentum(); }) {
        h.momentum = self.momentum();
        h.dampening = self.dampening();
        h.nesterov = self.nesterov();
    }
    if constexpr (requires { self.decouple_lr(); }) {
        h.fully_decoupled = self.decouple_lr();
        h.initial_learning_rate = self.initial_lr();
    }
    return h;
}

template <class Self>
StorageOptions CommonOptions<Self>::storage() const {
    StorageOptions storage;
    storage.format = format();
    storage.master_weight_bits = master_weight_bits();
    storage.quantize = quantize();
    storage.min_quantized_numel = min_quantized_numel();
    storage.min_quantized_numel_1d = min_quantized_numel_1d();
    return storage;
}

template <class Self>
void CommonOptions<Self>::inherit(const torch::optim::OptimizerOptions& defaults) {
    const auto* from = dynamic_cast<const Self*>(&defaults);
    if (from == nullptr) {
        throw InvalidArgument(
            "options of a parameter group are of another optimizer; give each group the optimizer's own "
            "options");
    }
    const Self untouched;
    for_each_field(
        [](auto mine, auto theirs, auto initial) {
            if (!mine.option.is_set && mine.option.value == initial.option.value) mine.option = theirs.option;
        },
        static_cast<Self&>(*this), *from, untouched);
}

template <class Self>
void CommonOptions<Self>::remember_first_learning_rate() {
    auto& self = static_cast<Self&>(*this);
    if constexpr (requires { self.initial_lr(); }) {
        if (self.initial_lr() == 0.0) self.initial_lr(lr());
    }
}

template class CommonOptions<SGDOptions>;
template class CommonOptions<SGDWOptions>;
template class CommonOptions<AdamOptions>;
template class CommonOptions<AdamWOptions>;
template class CommonOptions<LionOptions>;

}  // namespace flashoptim::libtorch

// The table of an optimizer's parameters: which tensors are accepted, and what has changed since. States are
// in states.cpp.
#include <algorithm>
#include <utility>

#include "optimizer_impl.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// `plan` with the first moment of another plan.
StoragePlan with_first_moment_of(StoragePlan plan, const StoragePlan& other) {
    plan.at(codes_place(0)) = other.codes(0);
    plan.at(scales_place(0)) = other.scales(0);
    return plan;
}

/// Why this tensor cannot be stepped as a parameter, and the remedy.
std::optional<std::string> obstacle_of(const torch::Tensor& tensor) {
    if (tensor.layout() != torch::kStrided) return "is not a strided tensor; give a dense one";
    if (const auto obstacle = libtorch::obstacle_of(tensor.device())) {
        return "is on " + tensor.device().str() + "; " + *obstacle;
    }
    if (!is_steppable(tensor.scalar_type())) {
        return "has a dtype that cannot be stepped; cast it to float32, bfloat16 or float16";
    }
    if (tensor.is_neg()) return "is a lazily negated view; give the tensor that resolve_neg() returns";
    if (!is_aligned(tensor)) {
        return "lies at an address that is no multiple of its elements' size; give a copy of it (clone())";
    }
    return std::nullopt;
}

std::string place(std::size_t group, std::size_t index) {
    return "group " + std::to_string(group) + ", parameter " + std::to_string(index);
}

void check_options(Rule rule, const FlashOptions& options, std::size_t group) {
    try {
        check_hyperparameters(rule, options.hyperparameters());
    } catch (const InvalidArgument& error) {
        throw InvalidArgument("group " + std::to_string(group) + ": " + error.what());
    }
}

[[noreturn]] void refuse_shared(const Parameter& parameter, const Parameter& other) {
    throw InvalidArgument(parameter.name + " shares memory with " + other.name +
                          "; optimize one of them, or the tensor that both are parts of");
}

[[noreturn]] void refuse_repeated(std::size_t group, std::size_t index, const Parameter& other) {
    throw InvalidArgument(place(group, index) + " is the same tensor as " + other.name +
                          "; list each tensor once");
}

const std::byte* begin_of(const Parameter& parameter) {
    return static_cast<const std::byte*>(parameter.tensor.const_data_ptr());
}

}  // namespace

OptimizerImpl::OptimizerImpl(FlashOptimizer& optimizer, Rule rule_of_it)
    : owner(&optimizer), rule(rule_of_it) {}

OptimizerImpl::~OptimizerImpl() {
    if (const auto control = release.lock()) {
        const std::lock_guard lock(control->mutex);
        control->optimizer = nullptr;
    }
}

void OptimizerImpl::add_group(const torch::optim::OptimizerParamGroup& group) {
    if (!release.expired()) {
        throw InvalidArgument(
            "a parameter group cannot be added during gradient release; add it before GradientRelease is "
            "made");
    }
    auto& groups = owner->param_groups();
    const auto number = groups.size();
    auto options = owner->defaults().clone();
    if (group.has_options()) {
        options = group.options().clone();
        auto* given = dynamic_cast<FlashOptions*>(options.get());
        if (given == nullptr) {
            throw InvalidArgument("options of group " + std::to_string(number) +
                                  " are LibTorch's; give the group options of flashoptim::libtorch");
        }
        given->inherit(owner->defaults());
    }
    auto& ours = dynamic_cast<FlashOptions&>(*options);
    ours.remember_first_learning_rate();
    check_options(rule, ours, number);

    // A conflict with the table may only mean that the groups have changed since. So refresh it before
    // refusing.
    bool is_current = false;
    const auto bring_up_to_date = [&] {
        if (!std::exchange(is_current, true)) refresh();
    };
    std::unordered_map<const void*, Parameter> added;
    Ranges ranges;
    for (std::size_t i = 0; i < group.params().size(); ++i) {
        auto parameter = described(group.params()[i], number, i, ours);
        ++visits;
        const auto* const key = parameter.key();
        if (const auto twice = added.find(key); twice != added.end())
            refuse_repeated(number, i, twice->second);
        if (parameters_.contains(key)) bring_up_to_date();
        if (const auto known = parameters_.find(key); known != parameters_.end())
            refuse_repeated(number, i, known->second);
        if (meets(ranges_, parameter) != nullptr) bring_up_to_date();
        if (const auto* const other = meets(ranges_, parameter)) refuse_shared(parameter, *other);
        auto& kept = added.emplace(key, std::move(parameter)).first->second;
        kept.memory = begin_of(kept);
        add_range(ranges, kept);
    }
    const auto wanted = parameters_.size() + added.size();
    if (static_cast<float>(wanted) >
        static_cast<float>(parameters_.bucket_count()) * parameters_.max_load_factor())
        parameters_.reserve(std::max(wanted, 2 * parameters_.size()));
    groups.push_back(torch::optim::OptimizerParamGroup(group.params(), std::move(options)));
    parameters_.merge(added);  // cannot fail: there is room, and the nodes exist
    ranges_.merge(ranges);
}

Parameter OptimizerImpl::described(const torch::Tensor& tensor, std::size_t group, std::size_t index,
                                   const FlashOptions& options) const {
    Parameter parameter;
    parameter.name = place(group, index);
    const auto refuse = [&](const std::string& why) { throw InvalidArgument(parameter.name + ' ' + why); };
    if (!tensor.defined()) refuse("is undefined; give tensors that hold memory");
    parameter.name += " (" + describe(tensor) + ')';
    if (const auto obstacle = obstacle_of(tensor)) refuse(*obstacle);
    if (!tensor.is_leaf()) refuse("is not a leaf tensor; optimize the tensor that it was computed from");
    parameter.tensor = tensor;
    parameter.group = group;
    parameter.index = index;
    parameter.sizes = tensor.sizes().vec();
    parameter.generation = generation_;
    parameter.form.device = tensor.device();
    parameter.form.layout = layout_of(view_of(tensor), parameter.name);
    parameter.form.plan = plan_of(rule, options, tensor, parameter.form.layout, parameter.name);
    return parameter;
}

const FlashOptions& OptimizerImpl::options_of(const Parameter& parameter) const {
    return dynamic_cast<const FlashOptions&>(std::as_const(owner->param_groups()[parameter.group]).options());
}

void OptimizerImpl::refresh() {
    ++generation_;
    auto& groups = owner->param_groups();
    bool has_new_memory = false;
    std::size_t seen = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        auto* options = groups[g].has_options() ? dynamic_cast<FlashOptions*>(&groups[g].options()) : nullptr;
        if (options == nullptr) {
            throw InvalidArgument("group " + std::to_string(g) +
                                  " has no options of flashoptim::libtorch; add groups with add_param_group");
        }
        check_options(rule, *options, g);
        const auto& tensors = groups[g].params();
        for (std::size_t i = 0; i < tensors.size(); ++i, ++seen) {
            ++visits;
            auto found = parameters_.find(tensors[i].unsafeGetTensorImpl());
            if (found == parameters_.end()) {
                auto parameter = described(tensors[i], g, i, *options);
                const auto* const key = parameter.key();
                parameters_.emplace(key, std::move(parameter));
                has_new_memory = true;
                continue;
            }
            auto& parameter = found->second;
            if (parameter.generation == generation_) refuse_repeated(g, i, parameter);
            parameter.generation = generation_;
            parameter.group = g;
            parameter.index = i;
            observe(parameter);
            has_new_memory = has_new_memory || parameter.memory != begin_of(parameter);
        }
    }
    if (has_new_memory) register_memory();
    if (parameters_.size() != seen) forget_unlisted();
}

void OptimizerImpl::forget_unlisted() {
    // Counts on a device must not be attributed to a new tensor with the same key.
    collect_counts();
    std::erase_if(ranges_,
                  [&](const auto& range) { return range.second.parameter->generation != generation_; });
    std::erase_if(parameters_, [&](const auto& entry) {
        const bool forget = entry.second.generation != generation_;
        if (forget) owner->state().erase(entry.second.key());
        return forget;
    });
}

void OptimizerImpl::observe(Parameter& parameter) {
    const auto& tensor = parameter.tensor;
    const auto& options = options_of(parameter);
    auto& form = parameter.form;
    if (tensor.sizes() != at::IntArrayRef(parameter.sizes)) {
        throw InvalidArgument(parameter.name + " has become " + describe(tensor) +
                              "; make a new optimizer after a model was changed");
    }
    StateForm now;
    const bool has_moved = tensor.device() != form.device ||
                           dtype_of(tensor.scalar_type()) != form.plan.weight_dtype ||
                           tensor.strides() != at::IntArrayRef(form.layout.strides) || !is_aligned(tensor);
    if (has_moved) {
        if (const auto obstacle = obstacle_of(tensor)) {
            throw InvalidArgument(parameter.name + " has become " + describe(tensor) + ": it " + *obstacle);
        }
        now.device = tensor.device();
        now.layout = layout_of(view_of(tensor), parameter.name);
        now.plan = plan_of(rule, options, tensor, now.layout, parameter.name);
    } else {
        now.plan = plan_of(rule, options, tensor, form.layout, parameter.name);
        if (now.plan == form.plan) return;
        now.device = form.device;
        now.layout = form.layout;
    }
    if (now.device != form.device) {
        collect_counts();  // the counts are on the previous device
        parameter.alone.reset();
        parameter.steps_done.reset();
    }
    if (state_of(parameter) == nullptr) {
        parameter.former.reset();
        form = std::move(now);
        return;
    }
    // SGD's momentum may be switched on and off between steps. No other storage option may change once there
    // is a state.
    const auto& of_state = parameter.state_form();
    const auto by_options = plan_storage(rule, options.hyperparameters(), options.storage(),
                                         of_state.plan.weight_dtype, of_state.layout, parameter.name);
    if (with_first_moment_of(by_options, of_state.plan) != of_state.plan) {
        throw InvalidArgument(
            parameter.name +
            ": format, master_weight_bits, quantize or min_quantized_numel changed after its first step; "
            "set them back, or make a new optimizer and set its masters");
    }
    if (fits(now, of_state, parameter.sizes)) {
        parameter.former.reset();
    } else if (!parameter.former) {
        parameter.former = std::make_unique<StateForm>(form);
    }
    form = std::move(now);
}

bool OptimizerImpl::is_listed(const Parameter& parameter) const {
    const auto& groups = std::as_const(*owner).param_groups();
    return parameter.group < groups.size() && parameter.index < groups[parameter.group].params().size() &&
           groups[parameter.group].params()[parameter.index].is_same(parameter.tensor);
}

Parameter& OptimizerImpl::find(const torch::Tensor& tensor) {
    ++visits;
    auto found = tensor.defined() ? parameters_.find(tensor.unsafeGetTensorImpl()) : parameters_.end();
    if (found != parameters_.end() && is_listed(found->second)) {
        observe(found->second);
        return found->second;
    }
    refresh();
    found = tensor.defined() ? parameters_.find(tensor.unsafeGetTensorImpl()) : parameters_.end();
    if (found == parameters_.end()) {
        throw InvalidArgument(
            "the tensor " + (tensor.defined() ? describe(tensor) : std::string("(undefined)")) +
            " is not a parameter of this optimizer; pass the very tensor of a parameter group");
    }
    return found->second;
}

std::vector<Parameter*> OptimizerImpl::all() {
    refresh();
    std::vector<Parameter*> parameters;
    for (const auto& group : owner->param_groups()) {
        for (const auto& tensor : group.params()) {
            parameters.push_back(&parameters_.at(tensor.unsafeGetTensorImpl()));
        }
    }
    return parameters;
}

const Parameter* OptimizerImpl::meets(const Ranges& ranges, const Parameter& parameter) {
    const auto* const begin = begin_of(parameter);
    const auto* const end = begin + parameter.tensor.nbytes();
    if (begin == end) return nullptr;
    const auto next = ranges.lower_bound(begin);
    if (next != ranges.end() && std::less<>()(next->first, end)) return next->second.parameter;
    if (next == ranges.begin()) return nullptr;
    const auto& before = std::prev(next)->second;
    return std::less<>()(begin, before.end) ? before.parameter : nullptr;
}

void OptimizerImpl::add_range(Ranges& ranges, const Parameter& parameter) {
    if (const auto* const other = meets(ranges, parameter)) refuse_shared(parameter, *other);
    const auto* const begin = begin_of(parameter);
    const auto bytes = parameter.tensor.nbytes();
    if (bytes != 0) ranges.emplace(begin, Range{begin + bytes, &parameter});
}

void OptimizerImpl::register_memory(Parameter& parameter) {
    const auto* const begin = begin_of(parameter);
    if (parameter.memory == begin) return;
    ++visits;
    auto node = ranges_.extract(static_cast<const std::byte*>(parameter.memory));
    if (!node || node.mapped().parameter != &parameter || meets(ranges_, parameter) != nullptr) {
        if (node && node.mapped().parameter != &parameter) ranges_.insert(std::move(node));
        return refresh();  // others may have moved, too
    }
    node.key() = begin;
    node.mapped().end = begin + parameter.tensor.nbytes();
    ranges_.insert(std::move(node));
    parameter.memory = begin;
}

void OptimizerImpl::register_memory() {
    Ranges ranges;
    for (const auto& group : owner->param_groups()) {
        for (const auto& tensor : group.params()) {
            ++visits;
            const auto& parameter = parameters_.at(tensor.unsafeGetTensorImpl());
            add_range(ranges, parameter);
        }
    }
    ranges_ = std::move(ranges);
    for (auto& [key, parameter] : parameters_) parameter.memory = begin_of(parameter);
}

}  // namespace flashoptim::libtorch

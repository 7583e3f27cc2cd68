// Archives of version 2. Torch looks for an entry among all that an archive has, one by one: so there are as
// many entries whatever the number of groups and parameters, each a list.
//
//     flashoptim_archive   int, 2                rule            "AdamW", ...
//     group_sizes          parameters of each group
//     options/<name>       of each group: its value (a pair of numbers: the two, one behind the other)
//     dtype, dimensions    of each parameter; then one behind the other their sizes and strides
//     has_state            of each parameter; the rest is of those that have one
//     state/step, state/bad_elements, state/has_momentum
//     state/<tensor>       tensors of those that have it; state/<tensor>/of: which of them these are
#include "archive_format.h"

#include <optional>
#include <utility>
#include <vector>

namespace flashoptim::libtorch {

namespace {

using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

constexpr std::int64_t kNestedVersion = 1, kVersion = 2;
constexpr const char* kVersionKey = "flashoptim_archive";

[[noreturn]] void refuse_damaged(const std::string& what) {
    throw FormatError("optimizer archive: " + what + "; the archive is damaged");
}

/// The values of one option in all groups, as a list of the option's type.
c10::IValue column_of(const std::vector<c10::IValue>& values) {
    c10::List<double> doubles;
    c10::List<std::int64_t> integers;
    c10::List<bool> truths;
    for (const auto& value : values) {
        if (value.isTuple()) {
            for (const auto& number : value.toTupleRef().elements()) doubles.push_back(number.toDouble());
        } else if (value.isDouble()) {
            doubles.push_back(value.toDouble());
        } else if (value.isBool()) {
            truths.push_back(value.toBool());
        } else {
            integers.push_back(value.toInt());
        }
    }
    if (!doubles.empty()) return doubles;
    if (!truths.empty()) return truths;
    return integers;
}

/// The value of group g in such a list of `groups` groups.
c10::IValue value_in(const c10::IValue& column, std::size_t g, std::size_t groups, const std::string& name) {
    if (!column.isList()) refuse_damaged("option " + name + " is no list");
    const auto size = column.toListRef().size();
    if (column.isDoubleList() && size > groups && size % groups == 0) {
        const auto numbers = column.toDoubleList();
        const auto in_tuple = size / groups;
        std::vector<c10::IValue> tuple;
        for (std::size_t n = 0; n < in_tuple; ++n) tuple.emplace_back(numbers.get(in_tuple * g + n));
        return c10::ivalue::Tuple::create(std::move(tuple));
    }
    if (size != groups) refuse_damaged("option " + name + " is not of as many groups as there are");
    if (column.isDoubleList()) return column.toDoubleList().get(g);
    if (column.isBoolList()) return column.toBoolList().get(g);
    return column.toIntList().get(g);
}

/// Reads a list that stores some elements for each parameter, front to back.
template <class T>
class Reader {
public:
    Reader(InputArchive& archive, const std::string& key)
        : key_(key), list_(read_entry(archive, key).to<c10::List<T>>()) {}
    T next() {
        if (at_ == list_.size()) refuse_damaged(key_ + " is too short");
        return list_.get(at_++);
    }
    std::vector<T> next(std::int64_t count) {
        std::vector<T> taken;
        for (std::int64_t n = 0; n < count; ++n) taken.push_back(next());
        return taken;
    }
    [[nodiscard]] bool is_at_end() const { return at_ == list_.size(); }
    void expect_end() const {
        if (!is_at_end()) refuse_damaged(key_ + " is too long");
    }

private:
    std::string key_;
    c10::List<T> list_;
    std::size_t at_ = 0;
};

void read_states(InputArchive& archive, Rule rule, const std::vector<ArchivedParameter*>& with_state) {
    Reader<std::int64_t> steps(archive, "state/step"), bad(archive, "state/bad_elements");
    Reader<bool> momentum(archive, "state/has_momentum");
    for (auto* parameter : with_state) {
        parameter->step = steps.next();
        parameter->bad_elements = bad.next();
        parameter->has_momentum = momentum.next();
    }
    steps.expect_end();
    for (int place = 0; place < kMaxBuffers; ++place) {
        const std::string name(buffer_name(rule, place));
        if (name.empty()) continue;
        const auto key = "state/" + name;
        c10::IValue unused;
        if (!archive.try_read(key, unused)) continue;
        Reader<at::Tensor> tensors(archive, key);
        Reader<std::int64_t> owners(archive, key + "/of");
        while (!owners.is_at_end()) {
            const auto owner = static_cast<std::uint64_t>(owners.next());
            if (owner >= with_state.size()) refuse_damaged(key + "/of names a parameter that has no state");
            with_state[owner]->tensors.emplace(name, tensors.next());
        }
        tensors.expect_end();
    }
}

std::vector<ArchivedGroup> read_flat_archive(InputArchive& archive,
                                             const torch::optim::OptimizerOptions& defaults) {
    const auto sizes = read_entry(archive, "group_sizes").toIntVector();
    std::vector<ArchivedGroup> groups(sizes.size());
    std::map<std::string, c10::IValue> columns;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        groups[g].options = defaults.clone();
        dynamic_cast<FlashOptions&>(*groups[g].options)
            .set_values([&](const std::string& name) -> std::optional<c10::IValue> {
                const auto [column, is_new] = columns.try_emplace(name);
                if (is_new) archive.try_read("options/" + name, column->second);
                if (column->second.isNone()) return std::nullopt;
                return value_in(column->second, g, groups.size(), name);
            });
    }
    Reader<std::string> dtypes(archive, "dtype");
    Reader<std::int64_t> dimensions(archive, "dimensions"), extents(archive, "sizes"),
        strides(archive, "strides");
    Reader<bool> has_state(archive, "has_state");
    std::vector<ArchivedParameter*> with_state;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        for (std::int64_t i = 0; i < sizes[g]; ++i) {
            ArchivedParameter parameter;
            parameter.dtype = dtypes.next();
            const auto rank = dimensions.next();
            parameter.sizes = extents.next(rank);
            parameter.strides = strides.next(rank);
            parameter.has_state = has_state.next();
            groups[g].parameters.push_back(std::move(parameter));
        }
        for (auto& parameter : groups[g].parameters) {
            if (parameter.has_state) with_state.push_back(&parameter);
        }
    }
    dtypes.expect_end();
    read_states(archive, dynamic_cast<const FlashOptions&>(defaults).rule(), with_state);
    return groups;
}

}  // namespace

c10::IValue read_entry(InputArchive& archive, const std::string& key) {
    c10::IValue value;
    if (!archive.try_read(key, value)) refuse_damaged(key + " is missing");
    return value;
}

std::vector<ArchivedGroup> read_archive(InputArchive& archive, Rule rule_here,
                                        const torch::optim::OptimizerOptions& defaults) {
    const std::string rule(name_of(rule_here));
    c10::IValue version;
    if (!archive.try_read(kVersionKey, version)) {
        throw FormatError("optimizer archive: it was not written by flashoptim::libtorch::" + rule + " (no " +
                          kVersionKey + " in it); load one that was");
    }
    if (version.toInt() != kVersion && version.toInt() != kNestedVersion) {
        throw FormatError("optimizer archive: its version is " + std::to_string(version.toInt()) +
                          " and this library reads " + std::to_string(kNestedVersion) + " and " +
                          std::to_string(kVersion) + "; load it with the library that wrote it");
    }
    const auto saved_rule = read_entry(archive, "rule").toStringRef();
    if (saved_rule != rule) {
        throw FormatError("optimizer archive: it holds a " + saved_rule + " and was to be loaded into a " +
                          rule + "; make the optimizer that was saved");
    }
    if (version.toInt() == kNestedVersion) return read_nested_archive(archive, rule_here, defaults);
    return read_flat_archive(archive, defaults);
}

void write_archive(OutputArchive& archive, Rule rule, const std::vector<ArchivedGroup>& groups) {
    archive.write(kVersionKey, kVersion);
    archive.write("rule", std::string(name_of(rule)));
    c10::List<std::int64_t> group_sizes;
    std::map<std::string, std::vector<c10::IValue>> columns;
    c10::List<std::string> dtypes;
    c10::List<std::int64_t> dimensions, extents, strides, steps, bad;
    c10::List<bool> has_state, momentum;
    std::map<std::string, std::pair<c10::List<at::Tensor>, c10::List<std::int64_t>>> tensors;
    for (const auto& group : groups) {
        group_sizes.push_back(static_cast<std::int64_t>(group.parameters.size()));
        for (auto& [name, value] : dynamic_cast<const FlashOptions&>(*group.options).values())
            columns[name].push_back(value);
        for (const auto& parameter : group.parameters) {
            dtypes.push_back(parameter.dtype);
            dimensions.push_back(static_cast<std::int64_t>(parameter.sizes.size()));
            for (const auto extent : parameter.sizes) extents.push_back(extent);
            for (const auto stride : parameter.strides) strides.push_back(stride);
            has_state.push_back(parameter.has_state);
            if (!parameter.has_state) continue;
            for (const auto& [name, tensor] : parameter.tensors) {
                auto& [values, owners] = tensors[name];
                values.push_back(tensor);
                owners.push_back(static_cast<std::int64_t>(steps.size()));
            }
            steps.push_back(parameter.step);
            bad.push_back(parameter.bad_elements);
            momentum.push_back(parameter.has_momentum);
        }
    }
    archive.write("group_sizes", group_sizes);
    for (const auto& [name, values] : columns) archive.write("options/" + name, column_of(values));
    archive.write("dtype", dtypes);
    archive.write("dimensions", dimensions);
    archive.write("sizes", extents);
    archive.write("strides", strides);
    archive.write("has_state", has_state);
    archive.write("state/step", steps);
    archive.write("state/bad_elements", bad);
    archive.write("state/has_momentum", momentum);
    for (const auto& [name, lists] : tensors) {
        archive.write("state/" + name, lists.first);
        archive.write("state/" + name + "/of", lists.second);
    }
}

}  // namespace flashoptim::libtorch

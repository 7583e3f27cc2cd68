// Unknown options and subcommands, and which known one was near.
#include "usage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

namespace flashoptim::app {
namespace {

/// Inserted, lost, changed and swapped letters between two words (optimal string alignment).
std::size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::vector<std::size_t>> to(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i) {
        for (std::size_t j = 0; j <= b.size(); ++j) {
            if (i == 0 || j == 0) {
                to[i][j] = i + j;
                continue;
            }
            const std::size_t changed = to[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            to[i][j] = std::min({to[i - 1][j] + 1, to[i][j - 1] + 1, changed});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                to[i][j] = std::min(to[i][j], to[i - 2][j - 2] + 1);
            }
        }
    }
    return to[a.size()][b.size()];
}

/// Without dashes and what follows '='; '_' as people write who know the Python argument.
std::string bare(std::string_view name) {
    name = name.substr(0, name.find('='));
    name.remove_prefix(std::min(name.find_first_not_of('-'), name.size()));
    std::string word(name);
    std::transform(word.begin(), word.end(), word.begin(), [](char letter) {
        if (letter == '_') return '-';
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    });
    return word;
}

std::vector<std::string> options_of(const CLI::App& command) {
    std::vector<std::string> names;
    for (const auto* option : command.get_options({})) {
        for (const auto& name : option->get_lnames()) names.push_back("--" + name);
    }
    return names;
}

/// Every word of `name` stands in the description: --learning-rate is --lr.
std::string described(std::string_view name, const CLI::App& command) {
    const auto word = bare(name);
    for (const auto* option : command.get_options({})) {
        const auto description = bare(option->get_description());
        auto phrase = word;
        std::replace(phrase.begin(), phrase.end(), '-', ' ');
        if (phrase.size() > 3 && description.find(phrase) != std::string::npos &&
            !option->get_lnames().empty())
            return "--" + option->get_lnames()[0];
    }
    return {};
}

std::vector<const CLI::App*> subcommands_of(const CLI::App& app) {
    return app.get_subcommands([](const CLI::App*) { return true; });
}

std::string unknown_subcommand(const CLI::App& app, const std::string& name) {
    std::vector<std::string> known;
    std::string list;
    for (const auto* command : subcommands_of(app)) {
        known.push_back(command->get_name());
        list += (list.empty() ? "" : ", ") + command->get_name();
    }
    const auto near = nearest(name, known);
    return fmt::format("the subcommand '{}' is unknown; {}choose one of {}", name,
                       near.empty() ? "" : "did you mean " + near + "? ", list);
}

std::string unknown_option(const CLI::App& app, const CLI::App& command, const std::string& argument) {
    const auto name = argument.substr(0, argument.find('='));
    const bool is_before_any = &command == &app;
    std::string text = fmt::format("the option '{}' is unknown", argument.substr(0, argument.find('=')));
    if (!is_before_any) text += " to " + command.get_name();
    auto known = options_of(command);
    for (const auto* other : subcommands_of(app)) {
        const auto names = options_of(*other);
        if (std::find(names.begin(), names.end(), name) != names.end()) {
            if (is_before_any)
                return text + " before the subcommand; move it behind " + other->get_name() + "; ";
            text += " and belongs to " + other->get_name();
            break;
        }
        if (is_before_any) known.insert(known.end(), names.begin(), names.end());
    }
    auto near = nearest(name, known);
    if (near.empty()) near = described(name, command);
    return text + (near.empty() ? "; " : "; did you mean " + near + "? ");
}

}  // namespace

std::string nearest(std::string_view name, const std::vector<std::string>& known) {
    const auto word = bare(name);
    std::string best;
    std::size_t least = std::max<std::size_t>((word.size() + 1) / 3, 1) + 1;
    for (const auto& candidate : known) {
        if (const auto steps = distance(word, bare(candidate)); steps < least) {
            least = steps;
            best = candidate;
        }
    }
    for (const auto& candidate : known) {
        const auto other = bare(candidate);
        const bool begins_alike =
            word.size() > 2 && other.size() > 2 && (word.starts_with(other) || other.starts_with(word));
        if (best.empty() && begins_alike) best = candidate;
    }
    return best;
}

std::string empty_value(int argc, const char* const* argv) {
    for (int n = 1; n < argc; ++n) {
        const std::string_view argument(argv[n]);
        if (argument.starts_with("--") && argument.size() > 3 && argument.find('=') == argument.size() - 1) {
            return fmt::format("the option '{}' has no value behind its '='; give one, or leave it out",
                               argument);
        }
    }
    return {};
}

std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
    const auto parsed = app.get_subcommands();
    const CLI::App& command = parsed.empty() ? app : *parsed.front();
    const auto help = fmt::format("`flashoptim {}--help` lists what there is",
                                  parsed.empty() ? "" : command.get_name() + " ");
    for (const auto* place : {&app, &command}) {
        for (const auto& argument : place->remaining()) {
            if (argument.size() > 1 && argument[0] == '-' && argument != "--")
                return unknown_option(app, *place, argument) + help;
        }
    }
    for (const auto* place : {&app, &command}) {
        for (const auto& argument : place->remaining()) {
            if (place == &app && parsed.empty()) return unknown_subcommand(app, argument);
            return fmt::format(
                "{}: nobody expects the argument '{}'; a value follows its option, as in --data FILE; {}",
                command.get_name(), argument, help);
        }
    }
    return fmt::format("{}; {}", error.what(), help);
}

}  // namespace flashoptim::app

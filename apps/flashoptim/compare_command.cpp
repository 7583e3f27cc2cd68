// flashoptim compare: the same model from the same seed with each optimizer and format, each run in a process
// of its own so that the operating system's own figures tell their memory apart.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "commands.h"
#include "compare_table.h"
#include "console.h"
#include "failure.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/system/one_line.h"
#include "json_target.h"
#include "number_arguments.h"
#include "plot.h"
#include "run_arguments.h"
#include "stop_signals.h"
#include "subprocess.h"
#include "trainer/comparison_folder.h"
#include "trainer/loop.h"
#include "trainer/summary.h"

namespace flashoptim::app {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct CompareArguments : RunArguments {
    std::vector<std::string> optimizers = {"adamw"};
    std::vector<std::string> formats = {"fp32", "paper", "native"};
    std::vector<std::uint64_t> seeds;
    bool with_gradient_release = false;
    bool no_checkpoint = false;
    bool no_plot = false;
    std::optional<std::string> json;
    std::vector<std::string> passed_on;  // arguments that each run gets as they were typed
};

/// One run of the comparison.
struct PlannedRun {
    std::string optimizer, format;
    std::uint64_t seed = 0;
    bool gradient_release = false;

    [[nodiscard]] std::string name() const {
        return optimizer + "-" + format + (gradient_release ? "-released" : "") + "-seed" +
               std::to_string(seed);
    }
    [[nodiscard]] std::vector<std::string> arguments() const {
        std::vector<std::string> list = {"--optimizer", optimizer, "--format",
                                         format,        "--seed",  std::to_string(seed)};
        if (gradient_release) list.emplace_back("--gradient-release");
        return list;
    }
};

/// Each run has a folder of its own, and the table a column.
template <typename Value>
void require_different(const char* option, const std::vector<Value>& values) {
    for (auto value = values.begin(); value != values.end(); ++value) {
        if (std::find(values.begin(), value, *value) != value) {
            throw InvalidArgument(fmt::format("{} names {} twice; name each once", option, *value));
        }
    }
}

std::vector<PlannedRun> plan(const CompareArguments& arguments) {
    for (const auto& name : arguments.optimizers) static_cast<void>(trainer::parse_rule(name));
    for (const auto& name : arguments.formats) static_cast<void>(trainer::parse_format(name));
    require_different("--optimizers", arguments.optimizers);
    require_different("--formats", arguments.formats);
    require_different("--seeds", arguments.seeds);
    std::vector<PlannedRun> runs;
    const auto seeds = arguments.seeds.empty() ? std::vector{arguments.options.seed} : arguments.seeds;
    for (const auto& optimizer : arguments.optimizers) {
        for (const auto& format : arguments.formats) {
            for (const bool release : {false, true}) {
                if (release && !arguments.with_gradient_release) continue;
                for (const auto seed : seeds) runs.push_back({optimizer, format, seed, release});
            }
        }
    }
    // Everything that can be refused is refused before the first run starts.
    for (const auto& run : runs) {
        auto checked = arguments;
        checked.optimizer = run.optimizer;
        checked.format = run.format;
        checked.options.optimizer.gradient_release = run.gradient_release;
        trainer::check(to_options(checked));
    }
    return runs;
}

/// A run ended early, and the comparison with it.
struct RunEnded {
    int code;
    std::string line;  // empty: the run has said why
};

RunEnded stopped_by(int signal) { return {kOtherError, fmt::format("stopped by signal {}", signal)}; }

/// A value that was read, as the summary of all runs takes it.
Json to_json(const checkpoint::JsonValue& value) {
    if (const auto* members = value.as<checkpoint::JsonValue::Object>()) {
        Json object = Json::object();
        for (const auto& [key, member] : *members) object[key] = to_json(member);
        return object;
    }
    if (const auto* elements = value.as<checkpoint::JsonValue::List>()) {
        Json list = Json::array();
        for (const auto& element : *elements) list.push_back(to_json(element));
        return list;
    }
    if (const auto* text = value.as<std::string>()) return *text;
    if (const auto* truth = value.as<bool>()) return *truth;
    if (const auto* real = value.as<double>()) return *real;
    if (const auto* positive = value.as<std::uint64_t>()) return *positive;
    if (const auto* negative = value.as<std::int64_t>()) return *negative;
    return nullptr;
}

/// Runs this program's train subcommand as the run `name`; returns the one object of the summary it wrote to
/// `summary`.
Json run_train(const CompareArguments& shared, const std::string& name, const std::vector<std::string>& own,
               const fs::path& summary) {
    std::vector<std::string> command = {own_executable(), "train"};
    command.insert(command.end(), shared.passed_on.begin(), shared.passed_on.end());
    command.insert(command.end(), own.begin(), own.end());
    if (const int signal = StopSignals::received(); signal != 0) throw stopped_by(signal);
    const auto end = run_program(command, Output::kErrors);  // its results come by the summary
    if (const int signal = StopSignals::received(); signal != 0) throw stopped_by(signal);
    if (end.signal != 0) {
        const auto* why = end.signal == SIGKILL ? ", as the system does where memory runs out" : "";
        throw RunEnded{kOtherError,
                       fmt::format("the run {} was ended by signal {}{}", name, end.signal, why)};
    }
    if (end.code == kOtherError || end.code == kNotFinite) {
        const auto* how = end.code == kNotFinite ? " ended where its loss was not finite" : " ended early";
        throw RunEnded{end.code, "the run " + name + how};
    }
    if (end.code != kDone) throw RunEnded{end.code, ""};
    const auto result = trainer::first_run_in(summary);
    if (!result) {
        throw IoError(summary.string() + " cannot be read: the run that should have written it failed");
    }
    return to_json(*result);
}

/// Of the memory that the model lies in.
std::int64_t peak_bytes(const Json& run) {
    const auto on_device = run["peak_device_bytes"].get<std::int64_t>();
    return on_device > 0 ? on_device : run["peak_resident_bytes"].get<std::int64_t>();
}

/// Peak memory of a process that holds the model of `run` but neither gradients nor optimizer.
std::int64_t model_peak(const CompareArguments& arguments, const PlannedRun& run,
                        std::map<bool, std::int64_t>& known) {
    const bool is_reference = run.format == "fp32";
    if (const auto found = known.find(is_reference); found != known.end()) return found->second;
    const auto summary = arguments.options.out / (is_reference ? "model-fp32.json" : "model-bf16.json");
    // The optimizer, too: what others would refuse of its numbers says nothing.
    const auto result = run_train(
        arguments, "of the " + run.format + " model alone",
        {"--optimizer", run.optimizer, "--format", run.format, "--hold-model", "--json", summary.string()},
        summary);
    return known[is_reference] = peak_bytes(result);
}

/// The arguments of the command line that every run shares, as name=value: a flag may have a value, and a
/// value may look like a name.
std::vector<std::string> arguments_to_pass_on(const CLI::App& command) {
    static const std::vector<std::string> kOwn = {"--out",
                                                  "--overwrite",
                                                  "--optimizers",
                                                  "--formats",
                                                  "--seeds",
                                                  "--json",
                                                  "--seed",
                                                  "--no-plot",
                                                  "--help",
                                                  "--no-checkpoint",
                                                  "--with-gradient-release"};
    std::vector<std::string> passed;
    for (const auto* option : command.get_options([](const CLI::Option* o) { return o->count() > 0; })) {
        const auto name = option->get_name(false, false);
        if (std::find(kOwn.begin(), kOwn.end(), name) != kOwn.end()) continue;
        const auto value = option->reduced_results().back();
        if (value.empty()) {
            passed.insert(passed.end(), {name, value});
        } else {
            passed.push_back(name + "=" + value);
        }
    }
    return passed;
}

// A run comes before its model alone, so that one that is refused leaves nothing behind.
Json run_all(const CompareArguments& arguments, const std::vector<PlannedRun>& runs) {
    const auto& out = arguments.options.out;
    std::map<bool, std::int64_t> model_peaks;
    Json summary = {{"runs", Json::array()}};
    for (const auto& run : runs) {
        auto own = run.arguments();
        const auto folder = out / run.name();
        own.insert(own.end(), {"--out", folder.string()});
        if (arguments.options.overwrite) own.emplace_back("--overwrite");
        if (arguments.no_checkpoint) own.emplace_back("--no-final-checkpoint");
        auto result = run_train(arguments, run.name(), own, folder / "summary.json");
        const auto base = model_peak(arguments, run, model_peaks);
        result["peak_above_model_bytes"] = std::max<std::int64_t>(peak_bytes(result) - base, 0);
        result["name"] = run.name();
        summary["runs"].push_back(std::move(result));
    }
    return summary;
}

RunPlaces places_of(const CompareArguments& arguments, const std::vector<PlannedRun>& runs) {
    RunPlaces places;
    places.data = {arguments.options.data.path, arguments.options.data.validation_path};
    places.out = arguments.options.out;
    places.names = {"summary.json", "comparison.png", "model-fp32.json", "model-bf16.json"};
    for (const auto& run : runs) places.names.push_back(run.name());
    return places;
}

int compare(const CompareArguments& arguments) {
    const auto& out = arguments.options.out;
    const auto runs = plan(arguments);
    JsonTarget json(arguments.json, places_of(arguments, runs));
    std::vector<std::string> names;
    for (const auto& run : runs) names.push_back(run.name());
    trainer::ComparisonFolder folder(
        out, names, arguments.options.schedule.total_steps, arguments.options.overwrite,
        [](const std::string& line) { tell("flashoptim: note: {}\n", one_line(line)); });
    const StopSignals signals(StopSignals::Quit::kTaken);
    Json summary;
    try {
        summary = run_all(arguments, runs);
    } catch (const RunEnded& end) {
        if (end.line.empty()) return end.code;
        return report({end.code, fmt::format("compare: {}; the runs that were complete stay in {}: give "
                                             "--overwrite to start anew, or another --out",
                                             end.line, out.native())});
    }
    const auto text = summary.dump(2) + "\n";
    checkpoint::write_file(out / "summary.json", text);
    folder.end();
    json.write(text);
    print("\n{}", comparison_table(summary));
    print("\n{}\n", clipping(summary["runs"][0]["clip_norm"].get<double>()));
    const auto picture = arguments.no_plot ? fs::path() : plot_comparison(out);
    print("\n{}", one_line((out / "summary.json").native()));
    if (!picture.empty()) print(", {}", one_line(picture.native()));
    print("\n");
    return kDone;
}

}  // namespace

void add_compare_command(CLI::App& parent, Command& chosen) {
    auto arguments = std::make_shared<CompareArguments>();
    auto& command = *parent.add_subcommand(
        "compare",
        "Train the same model with each optimizer and format; ends with a table of memory, loss and time");
    add_run_arguments(command, *arguments);
    const std::string comparison = "Comparison";
    add_list(command, "--optimizers", arguments->optimizers, "Optimizers, separated by commas")
        ->group(comparison);
    add_list(command, "--formats", arguments->formats,
             "Formats, separated by commas; the differences are to fp32, the reference")
        ->group(comparison);
    add_list(command, "--seeds", arguments->seeds, "Seeds, separated by commas [--seed]")->group(comparison);
    command
        .add_flag("--with-gradient-release", arguments->with_gradient_release,
                  "Run each also with gradient release; then none is clipped")
        ->group(comparison);
    command
        .add_option("--out", arguments->options.out,
                    "Folder for the summary, the picture and a folder for each run")
        ->required()
        ->group(comparison);
    command
        .add_flag("--overwrite", arguments->options.overwrite,
                  "Replace a comparison and its runs that lie there")
        ->group(comparison);
    command.add_flag("--no-checkpoint", arguments->no_checkpoint, "Write no checkpoints")->group(comparison);
    command.add_option("--json", arguments->json, "Write the summary to this file too")->group(comparison);
    command.add_flag("--no-plot", arguments->no_plot, "Draw no picture")->group(comparison);
    check_arguments(command);
    command.callback([arguments, &command, &chosen] {
        arguments->passed_on = arguments_to_pass_on(command);
        // Where gradient release is compared, nothing else differs: no run is clipped.
        if (arguments->with_gradient_release && !arguments->clip_norm) {
            arguments->clip_norm = 0.0;
            arguments->passed_on.emplace_back("--clip=0");
        }
        chosen = [arguments] { return compare(*arguments); };
    });
}

}  // namespace flashoptim::app

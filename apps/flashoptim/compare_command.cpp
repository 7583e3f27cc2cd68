// flashoptim compare: the same model from the same seed with each optimizer and format, each run in a process of its own so that
// the operating system's own figures tell their memory apart.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "commands.h"
#include "compare_table.h"
#include "console.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "number_arguments.h"
#include "plot.h"
#include "run_arguments.h"
#include "subprocess.h"
#include "trainer/environment.h"
#include "trainer/loop.h"
#include "trainer/run_folder.h"

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
    fs::path json;
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

std::vector<PlannedRun> plan(const CompareArguments& arguments) {
    trainer::check_environment(arguments.options.threads);
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
        trainer::validate(to_options(checked));
    }
    return runs;
}

/// A run refused its arguments or its data, and has said why.
struct Refused {};

Json read_json(const fs::path& file) {
    std::ifstream stream(file);
    std::stringstream text;
    text << stream.rdbuf();
    if (!stream) throw IoError(file.string() + " cannot be read: the run that should have written it failed");
    return Json::parse(text.str());
}

/// Runs this program's train subcommand; returns the one object of the summary it wrote to `summary`.
Json run_train(const CompareArguments& shared, const std::vector<std::string>& own, const fs::path& summary) {
    std::vector<std::string> command = {own_executable(), "train"};
    command.insert(command.end(), shared.passed_on.begin(), shared.passed_on.end());
    command.insert(command.end(), own.begin(), own.end());
    const int code = run_program(command, Output::kDropped);  // its results come by the summary
    if (code == kBadInput) throw Refused();
    if (code != 0)
        throw std::runtime_error(fmt::format("a run ended with exit code {}; nothing was compared", code));
    return read_json(summary)["runs"][0];
}

/// Of the memory that the model lies in.
std::int64_t peak_bytes(const Json& run) {
    const auto on_device = run["peak_device_bytes"].get<std::int64_t>();
    return on_device > 0 ? on_device : run["peak_resident_bytes"].get<std::int64_t>();
}

/// Peak memory of a process that holds the model of `format` but neither gradients nor optimizer.
std::int64_t model_peak(const CompareArguments& arguments, const std::string& format,
                        std::map<bool, std::int64_t>& known) {
    const bool is_reference = format == "fp32";
    if (const auto found = known.find(is_reference); found != known.end()) return found->second;
    const auto summary = arguments.options.out / (is_reference ? "model-fp32.json" : "model-bf16.json");
    const auto run =
        run_train(arguments, {"--format", format, "--hold-model", "--json", summary.string()}, summary);
    return known[is_reference] = peak_bytes(run);
}

/// The arguments of the command line that every run shares, as name=value: a flag may have a value, and a value may look like a name.
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

/// Nothing that lies there is lost unasked, also where an earlier comparison was killed before its summary.
void require_free(const fs::path& out, const std::vector<PlannedRun>& runs) {
    if (fs::exists(out / "summary.json")) {
        throw InvalidArgument(out.string() +
                              " holds a comparison already: give --overwrite or another --out");
    }
    for (const auto& run : runs) {
        if (const auto folder = out / run.name(); trainer::holds_run(folder)) {
            throw InvalidArgument(folder.string() +
                                  " holds a run already: give --overwrite or another --out");
        }
    }
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
        auto result = run_train(arguments, own, folder / "summary.json");
        const auto base = model_peak(arguments, run.format, model_peaks);
        result["peak_above_model_bytes"] = std::max<std::int64_t>(peak_bytes(result) - base, 0);
        result["name"] = run.name();
        summary["runs"].push_back(std::move(result));
    }
    return summary;
}

int compare(const CompareArguments& arguments) {
    const auto& out = arguments.options.out;
    const auto runs = plan(arguments);
    if (!arguments.options.overwrite) require_free(out, runs);
    Json summary;
    try {
        summary = run_all(arguments, runs);
    } catch (const Refused&) {
        return kBadInput;
    }
    const auto text = summary.dump(2) + "\n";
    checkpoint::write_file(out / "summary.json", text);
    if (!arguments.json.empty()) checkpoint::write_file(arguments.json, text);
    print("\n{}", comparison_table(summary));
    const auto picture = arguments.no_plot ? fs::path() : plot_comparison(out);
    print("\n{}", (out / "summary.json").string());
    if (!picture.empty()) print(", {}", picture.string());
    print("\n");
    return 0;
}

}  // namespace

void add_compare_command(CLI::App& parent, Command& chosen) {
    auto arguments = std::make_shared<CompareArguments>();
    arguments->options.clip_norm = 0.0;  // so that gradient release can be compared
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
                  "Run each also with gradient release (needs --clip 0)")
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
        // The default differs from that of train.
        if (command.get_option("--clip")->count() == 0) arguments->passed_on.emplace_back("--clip=0");
        chosen = [arguments] { return compare(*arguments); };
    });
}

}  // namespace flashoptim::app

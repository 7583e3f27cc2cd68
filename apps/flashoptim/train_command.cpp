// flashoptim train: one run.
#include <optional>

#include "commands.h"
#include "console.h"
#include "failure.h"
#include "flashoptim/error.h"
#include "flashoptim/system/one_line.h"
#include "json_target.h"
#include "number_arguments.h"
#include "run_arguments.h"
#include "trainer/loop.h"
#include "trainer/summary.h"

namespace flashoptim::app {
namespace {

// What --resume without a value becomes: no path holds a zero byte.
const std::string kResumeOut(1, '\0');

struct TrainArguments : RunArguments {
    std::optional<std::string> resume;
    std::optional<std::string> json;
    bool no_final_checkpoint = false;
    bool list_models = false;
    bool hold_model = false;
};

void print_models() {
    print("{:<12} {:>14} {:>11}  {}\n", "preset", "parameters", "vocabulary", "shape");
    for (const auto& preset : trainer::presets()) {
        print("{:<12} {:>14} {:>11}  {}\n", preset.name, preset.parameters, preset.vocabulary_size,
              preset.shape);
    }
}

void write_json(JsonTarget& target, const trainer::TrainOptions& options,
                const trainer::TrainResult& result) {
    const trainer::FinishedRun finished{options, result};
    target.write(trainer::summary_json({&finished, 1}));
}

void print_result(const trainer::TrainOptions& options, const trainer::TrainResult& result) {
    const auto& memory = result.memory;
    print("{} after step {}\n", result.stopped ? "stopped" : "done", result.last_step);
    print("{}\n", clipping(options.clip_norm));
    if (result.validation_loss) print("validation loss      {:.4f}\n", *result.validation_loss);
    const auto line = [&](const char* name, std::int64_t bytes) {
        if (bytes > 0)
            print("{:<20} {:>10}  {:.4f} B/parameter\n", name, human_bytes(bytes),
                  memory.per_parameter(bytes));
    };
    line("weights", memory.weights);
    line("corrections", memory.corrections);
    line("moments", memory.moments);
    line("scales", memory.scales);
    line("gradients", memory.gradients);
    line("fp32 accumulators", memory.accumulators);
    line("total", memory.total());
    line("autocast copies", memory.autocast_copies);
    print("{:<20} {:>10}\n", "peak resident", human_bytes(result.peak_resident_bytes));
    if (result.peak_device_bytes > 0) {
        print("{:<20} {:>10}\n", "peak on device", human_bytes(result.peak_device_bytes));
    }
    if (result.checkpoint_bytes > 0) {
        print("{:<20} {:>10}  {}\n", "checkpoint", human_bytes(result.checkpoint_bytes),
              one_line(result.checkpoint.native()));
    }
    if (result.bad_elements > 0) {
        print("skipped elements     {} (their gradients were not finite)\n", result.bad_elements);
    }
    if (result.is_kept) print("metrics.csv and summary.json are in {}\n", one_line(options.out.native()));
}

int train(const TrainArguments& arguments) {
    if (arguments.list_models) {
        print_models();
        return kDone;
    }
    auto options = to_options(arguments);
    options.final_checkpoint = !arguments.no_final_checkpoint;
    if (arguments.resume) {
        options.resume =
            *arguments.resume == kResumeOut ? options.out : std::filesystem::path(*arguments.resume);
        if (options.resume.empty()) {
            throw InvalidArgument(
                "--resume needs to know what to resume: give --out of the run, or --resume PATH and --out");
        }
        if (options.out.empty()) {
            throw InvalidArgument(
                "--resume without --out would keep nothing of what it trains; give the --out "
                "of the run, or of a new one");
        }
    }
    JsonTarget json(arguments.json, {.data = {options.data.path, options.data.validation_path},
                                     .out = options.out,
                                     .names = names_of_run(),
                                     .resume = options.resume});
    if (arguments.hold_model) {
        write_json(json, options, trainer::hold_model(options));
        return kDone;
    }
    trainer::TrainResult result;
    std::optional<Failure> failure;
    {
        ConsoleObserver console(arguments.optimizer + " " + arguments.format);
        try {
            result = trainer::train(options, console);
        } catch (...) {
            failure = current_failure(console.started() ? Phase::kRunning : Phase::kBeforeFirstStep);
        }
    }
    if (failure) return report(*failure);  // below the progress bar
    write_json(json, options, result);
    print_result(options, result);
    return result.stopped ? kOtherError : kDone;
}

}  // namespace

void add_train_command(CLI::App& parent, Command& chosen) {
    auto arguments = std::make_shared<TrainArguments>();
    auto& command = *parent.add_subcommand("train", "Train a model on text or token files");
    add_run_arguments(command, *arguments);
    add_optimizer_arguments(command, *arguments);
    const std::string files = "Files";
    command
        .add_option("--out", arguments->options.out, "Folder for metrics.csv, summary.json and checkpoints")
        ->group(files);
    command
        .add_flag(
            "--overwrite", arguments->options.overwrite,
            "Start anew in a folder that holds a run already, which stays until the new one has a checkpoint")
        ->group(files);
    command
        .add_option("--checkpoint-every", arguments->options.checkpoint_interval,
                    "Steps between checkpoints; 0: only the last")
        ->capture_default_str()
        ->group(files);
    command.add_option("--keep-checkpoints", arguments->options.kept_checkpoints, "Newest to keep; 0: all")
        ->capture_default_str()
        ->group(files);
    command
        .add_option("--resume", arguments->resume,
                    "Go on from the newest checkpoint in --out, or from the checkpoint or run named")
        ->expected(0, 1)
        ->default_str(kResumeOut)
        ->option_text("[PATH]")
        ->group(files);
    command
        .add_flag("--allow-other-data", arguments->options.allow_other_data,
                  "Resume though the data is not what the checkpoint was made with")
        ->group(files);
    command
        .add_flag("--no-final-checkpoint", arguments->no_final_checkpoint,
                  "Write no checkpoint after the last step")
        ->group(files);
    command.add_option("--json", arguments->json, "Write the results to this file too")->group(files);
    command
        .add_flag("--hold-model", arguments->hold_model,
                  "Only build the model and run one forward pass; --json gets the memory that took")
        ->group(files);
    auto* list = command.add_flag("--list-models", arguments->list_models, "Name the presets and end");
    // Asking for the list needs no data.
    list->each([&command](const std::string&) {
        command.get_option("--data")->required(false);
        command.get_option("--steps")->required(false);
    });
    check_arguments(command);
    command.callback([arguments, &chosen] { chosen = [arguments] { return train(*arguments); }; });
}

}  // namespace flashoptim::app

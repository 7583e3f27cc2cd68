// The flashoptim command: which subcommand, and what an error looks like.
#include <CLI/CLI.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "commands.h"
#include "console.h"
#include "failure.h"
#include "flashoptim/version.h"
#include "process_setup.h"
#include "usage.h"

int main(int argc, char** argv) {
    using namespace flashoptim::app;
    prepare_process();
    CLI::App app{
        "Trains neural networks with optimizers that keep less: 7 bytes per parameter for AdamW instead of "
        "16."};
    app.footer(kExitCodes);
    app.set_version_flag("--version", "flashoptim " FLASHOPTIM_VERSION_STRING);
    app.require_subcommand(1);
    Command command;
    add_train_command(app, command);
    add_compare_command(app, command);
    add_bench_command(app, command);
    try {
        if (auto line = empty_value(argc, argv); !line.empty()) return report({kBadInput, std::move(line)});
        try {
            app.parse(argc, argv);
        } catch (const CLI::Success& help) {
            std::ostringstream text;
            const int code = app.exit(help, text, text);
            print(text.str());
            command = [code] { return code; };
        } catch (const CLI::ParseError& error) {
            return report({kBadInput, usage_error(app, error)});
        }
        const int code = command();
        finish_output();
        return code;
    } catch (...) {
        return report(current_failure(Phase::kBeforeFirstStep));
    }
}

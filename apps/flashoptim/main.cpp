// The flashoptim command: which subcommand, and what an error looks like. Exit codes: 0 done, 2 bad usage or bad input,
// 1 anything else; an error is one line on stderr.
#include <CLI/CLI.hpp>
#include <exception>
#include <new>
#include <string>

#include "commands.h"
#include "console.h"
#include "flashoptim/error.h"
#include "flashoptim/version.h"

namespace {

using flashoptim::app::kBadInput;
using flashoptim::app::kOtherError;

int report(const std::string& message, int code) {
    flashoptim::app::tell("flashoptim: {}\n", message.substr(0, message.find('\n')));
    return code;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "Trains neural networks with optimizers that keep less: 7 bytes per parameter for AdamW instead of "
        "16.\n"
        "Exit codes: 0 done, 2 bad usage or bad input (one line on stderr), 1 anything else."};
    app.set_version_flag("--version", "flashoptim " FLASHOPTIM_VERSION_STRING);
    app.require_subcommand(1);
    flashoptim::app::Command command;
    flashoptim::app::add_train_command(app, command);
    flashoptim::app::add_compare_command(app, command);
    flashoptim::app::add_bench_command(app, command);
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& help) {
        command = [code = app.exit(help)] { return code; };
    } catch (const CLI::ParseError& error) {
        return report(std::string(error.what()) + "; run with --help for the options", kBadInput);
    }
    try {
        const int code = command();
        flashoptim::app::finish_output();
        return code;
    } catch (const flashoptim::NonFiniteError& error) {
        return report(error.what(), kOtherError);
    } catch (const flashoptim::Error& error) {
        return report(error.what(), kBadInput);
    } catch (const std::bad_alloc&) {
        return report("out of memory: use a smaller model, batch or sequence", kOtherError);
    } catch (const std::exception& error) {
        return report(error.what(), kOtherError);
    }
}

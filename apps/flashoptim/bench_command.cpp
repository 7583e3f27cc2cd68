// flashoptim bench: how fast the optimizer step is on this machine, against its own fp32 and against the
// memory's bandwidth.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "commands.h"
#include "console.h"
#include "failure.h"
#include "flashoptim/error.h"
#include "flashoptim/version.h"
#include "json_target.h"
#include "number_arguments.h"
#include "step_timing.h"
#include "trainer/environment.h"
#include "trainer/memory_estimate.h"
#include "trainer/threads.h"
#include "trainer/train_options.h"

namespace flashoptim::app {
namespace {

using Json = nlohmann::ordered_json;

// In the place of the bounds of a run, or of options that it does not have.
constexpr std::array kLimits = {
    trainer::WholeLimits{"--threads", "the number of threads", 1, 1024, {}},
    trainer::WholeLimits{"--parameters", "the size of a tensor", 1, std::uint64_t{1} << 14, {}},
    trainer::WholeLimits{"--rounds", "the number of rounds", 1, 1000, {}},
};

struct BenchArguments {
    std::vector<std::string> optimizers = {"adamw", "sgd", "lion"};
    std::vector<std::string> formats = {"native", "paper", "fp32"};
    std::vector<std::string> backends = {"automatic"};
    std::vector<int> threads = {1, 2};
    std::vector<std::int64_t> megaparameters = {1, 64};
    int rounds = 9;
    bool quick = false;
    std::optional<std::string> json;
};

/// One line of the table.
struct Measurement {
    std::string optimizer, format, backend;
    int threads = 0;
    std::int64_t parameters = 0, bytes_moved = 0;
    std::vector<double> seconds, shares, ratios;

    [[nodiscard]] Json to_json() const {
        const double time = median(seconds);
        const auto count = static_cast<double>(parameters);
        Json json = {{"optimizer", optimizer},
                     {"format", format},
                     {"backend", backend},
                     {"threads", threads},
                     {"parameters", parameters},
                     {"seconds", time},
                     {"parameters_per_second", count / time},
                     {"bytes_per_parameter_moved", static_cast<double>(bytes_moved) / count},
                     {"bytes_per_second", static_cast<double>(bytes_moved) / time},
                     {"share_of_bandwidth", median(shares)},
                     {"speed_over_fp32", nullptr}};
        if (!ratios.empty()) json["speed_over_fp32"] = median(ratios);
        return json;
    }
};

Backend backend_named(const std::string& name) {
    if (name == "automatic") return Backend::kAutomatic;
    std::string names = "automatic";
    for (const auto backend : available_backends()) {
        if (name_of(backend) == name) return backend;
        names += ", " + std::string(name_of(backend));
    }
    throw InvalidArgument("--backend " + name + " is not one of this build on this processor: choose of " +
                          names);
}

constexpr char kRow[] = "{:<6} {:<7} {:<12} {:>3} {:>7} {:>10} {:>9} {:>7} {:>9} {:>8}\n";

void print_row(const Json& m) {
    const auto parameters = m["parameters"].get<std::int64_t>();
    print(std::string_view(fmt::format(
        kRow, m["optimizer"].get<std::string>(), m["format"].get<std::string>(),
        m["backend"].get<std::string>(), m["threads"].get<int>(), fmt::format("{} M", parameters >> 20),
        fmt::format("{:.3f} ms", m["seconds"].get<double>() * 1e3),
        fmt::format("{:.3f}", m["parameters_per_second"].get<double>() * 1e-9),
        fmt::format("{:.1f}", m["bytes_per_second"].get<double>() * 1e-9),
        fmt::format("{:.0f} %", m["share_of_bandwidth"].get<double>() * 100.0),
        m["speed_over_fp32"].is_null() ? "-" : fmt::format("{:.2f}", m["speed_over_fp32"].get<double>()))));
}

/// Times all formats of one optimizer in turns, so that a machine that slows down slows all of them, with the
/// bandwidth between.
std::vector<Measurement> measure(const BenchArguments& arguments, const std::string& optimizer,
                                 const std::string& backend, int threads, std::int64_t parameters) {
    std::vector<Measurement> results;
    std::vector<StepContestant> contestants;
    for (const auto& format : arguments.formats) {
        contestants.emplace_back(trainer::parse_rule(optimizer), trainer::parse_format(format),
                                 backend_named(backend), threads, parameters);
        results.push_back(
            {optimizer, format, backend, threads, parameters, contestants.back().bytes_moved(), {}, {}, {}});
    }
    BandwidthProbe probe(threads);
    const auto fp32 = std::find(arguments.formats.begin(), arguments.formats.end(), "fp32");
    for (int round = 0; round < arguments.rounds; ++round) {
        const double bandwidth = probe.bytes_per_second();
        for (std::size_t n = 0; n < contestants.size(); ++n) {
            const double seconds = contestants[n].seconds();
            results[n].seconds.push_back(seconds);
            results[n].shares.push_back(static_cast<double>(results[n].bytes_moved) / seconds / bandwidth);
        }
        if (fp32 == arguments.formats.end()) continue;
        const double reference =
            results[static_cast<std::size_t>(fp32 - arguments.formats.begin())].seconds.back();
        for (auto& result : results) result.ratios.push_back(reference / result.seconds.back());
    }
    return results;
}

/// Everything that can be refused is refused before anything is measured.
void check(const BenchArguments& arguments) {
    for (const auto& backend : arguments.backends) {
        if (backend_named(backend) == Backend::kAutomatic) trainer::check_backend();
    }
    const auto largest = *std::max_element(arguments.megaparameters.begin(), arguments.megaparameters.end());
    std::int64_t most = 0;  // all formats of an optimizer are there at once
    for (const auto& optimizer : arguments.optimizers) {
        std::int64_t bytes = BandwidthProbe::kBytes;
        for (const auto& format : arguments.formats) {
            bytes += StepContestant::bytes_of(trainer::parse_rule(optimizer), trainer::parse_format(format),
                                              largest << 20);
        }
        most = std::max(most, bytes);
    }
    trainer::require_memory(most, "the benchmark", "take smaller --parameters or fewer formats");
    const int threads = *std::max_element(arguments.threads.begin(), arguments.threads.end());
    trainer::require_startable(threads);
}

int run(BenchArguments arguments) {
    if (arguments.quick) {
        arguments.optimizers = {"adamw"};
        arguments.rounds = std::min(arguments.rounds, 5);
    }
    JsonTarget json(arguments.json, {});
    check(arguments);
    Json all = {{"version", FLASHOPTIM_VERSION_STRING}, {"measurements", Json::array()}};
    print(std::string_view(fmt::format(kRow, "rule", "format", "backend", "thr", "param", "step", "Gparam/s",
                                       "GB/s", "of memory", "of fp32")));
    for (const auto parameters : arguments.megaparameters) {
        for (const int threads : arguments.threads) {
            for (const auto& backend : arguments.backends) {
                for (const auto& optimizer : arguments.optimizers) {
                    for (const auto& result :
                         measure(arguments, optimizer, backend, threads, parameters << 20)) {
                        all["measurements"].push_back(result.to_json());
                        print_row(all["measurements"].back());
                    }
                }
            }
        }
    }
    print(
        "thr: threads. of memory: bytes moved over the bandwidth of adding to 256 MiB in place, measured in "
        "turns (more than\n"
        "100 % where the tensors fit the cache). of fp32: speed over the same rule with fp32 weights, "
        "gradients and moments.\n");
    json.write(all.dump(2) + '\n');
    return kDone;
}

}  // namespace

void add_bench_command(CLI::App& parent, Command& chosen) {
    auto arguments = std::make_shared<BenchArguments>();
    auto& command = *parent.add_subcommand("bench", "Time the optimizer step on this machine");
    add_list(command, "--optimizer", arguments->optimizers, "sgd, sgdw, adam, adamw, lion");
    add_list(command, "--format", arguments->formats, "native, paper, fp32");
    add_list(command, "--backend", arguments->backends,
             "automatic, scalar, portable, avx2, avx512, avx512-vbmi, neon");
    add_list(command, "--threads", arguments->threads, "Threads of a step");
    add_list(command, "--parameters", arguments->megaparameters,
             "Sizes of the tensor in units of 2^20 parameters");
    command.add_option("--rounds", arguments->rounds, "Measurements of each; the median counts")
        ->capture_default_str();
    command.add_flag("--quick", arguments->quick, "AdamW alone, in at most 5 rounds");
    command.add_option("--json", arguments->json, "Write the figures to this file too");
    check_arguments(command, kLimits);
    command.callback([&chosen, arguments] {
        chosen = [arguments] {
            try {
                return run(*arguments);
            } catch (...) {
                return report(current_failure(Phase::kRunning, "use smaller --parameters"));
            }
        };
    });
}

}  // namespace flashoptim::app

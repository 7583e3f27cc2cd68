// Every option of every subcommand that takes a number, with every text that is none. If these
// fail, a run is made with another number than was typed: CLI11 alone wraps --seed=-1, saturates
// at 2^63 and takes 010 for 8.
#include "number_arguments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "commands.h"

namespace flashoptim::app {
namespace {

const std::vector<std::string>& no_whole_numbers() {
    static const std::vector<std::string> kTexts = {"-1",
                                                    "+5",
                                                    "-0",
                                                    " 5",
                                                    "5 ",
                                                    "5.0",
                                                    "5.",
                                                    "1e3",
                                                    "0x10",
                                                    "0b11",
                                                    "1_000",
                                                    "1,0x",
                                                    "5k",
                                                    "five",
                                                    "٣",
                                                    "５",
                                                    "nan",
                                                    "inf",
                                                    "true",
                                                    "--5",
                                                    "5-",
                                                    "5\n",
                                                    "\t5",
                                                    "$((5))",
                                                    "1 2",
                                                    "0o7",
                                                    "1e",
                                                    "18446744073709551616",
                                                    "99999999999999999999",
                                                    "-9223372036854775809",
                                                    "340282366920938463463374607431768211456"};
    return kTexts;
}
const std::vector<std::string>& no_real_numbers() {
    static const std::vector<std::string> kTexts = {"-1",     "+0.5", " 0.5",     "0.5 ",  "nan",    "NaN",
                                                    "inf",    "-inf", "infinity", "1e400", "-1e400", "1e-400",
                                                    "0x1p-2", "0,5",  "0.5.1",    "1e",    "e-3",    ".",
                                                    "half",   "0.5f", "1/2",      "50%",   "٠.٥",    "1e-3x"};
    return kTexts;
}

/// What the command line says of the arguments; empty where it takes them. Nothing runs.
std::string said_of(std::vector<std::string> arguments) {
    CLI::App app;
    Command chosen;
    add_train_command(app, chosen);
    add_compare_command(app, chosen);
    add_bench_command(app, chosen);
    std::reverse(arguments.begin(), arguments.end());
    try {
        app.parse(arguments);
    } catch (const CLI::Error& error) {
        return error.what();
    }
    return {};
}

std::vector<std::string> enough_of(const std::string& subcommand) {
    if (subcommand == "bench") return {subcommand};
    std::vector<std::string> arguments = {subcommand, "--data=text.txt", "--steps=3"};
    if (subcommand == "compare") arguments.emplace_back("--out=out");
    return arguments;
}

std::string said_of(const std::string& subcommand, const std::string& option, const std::string& value) {
    auto arguments = enough_of(subcommand);
    arguments.insert(arguments.end(), {option, value});
    return said_of(std::move(arguments));
}

struct NumberOption {
    std::string subcommand, name;
    bool is_whole = false;
};
std::vector<NumberOption> number_options() {
    CLI::App app;
    Command chosen;
    add_train_command(app, chosen);
    add_compare_command(app, chosen);
    add_bench_command(app, chosen);
    std::vector<NumberOption> found;
    for (const auto* command : app.get_subcommands([](const CLI::App*) { return true; })) {
        for (const auto* option : command->get_options()) {
            const auto type = option->get_type_name();
            if (option->get_expected_max() == 0 || type.starts_with("TEXT")) continue;
            found.push_back({command->get_name(), option->get_name(false, false), type != "FLOAT"});
        }
    }
    return found;
}

TEST(NumberArguments, WhatIsNotANumberIsRefusedInEveryOption) {
    const auto options = number_options();
    EXPECT_GE(options.size(), 45U);  // 23 of a run, twice, and three of a benchmark
    for (const auto& [subcommand, name, is_whole] : options) {
        for (const auto& text : is_whole ? no_whole_numbers() : no_real_numbers()) {
            const auto said = said_of(subcommand, name, text);
            EXPECT_NE(said.find(name), std::string::npos)
                << subcommand << " " << name << " '" << text << "': " << said;
            EXPECT_NE(said.find("it must be "), std::string::npos) << said;
        }
        EXPECT_FALSE(said_of(subcommand, name, "").empty()) << subcommand << " " << name;
    }
}

TEST(NumberArguments, BothBoundsAreTakenAndWhatIsOutsideIsNot) {
    for (const auto& [subcommand, name, is_whole] : number_options()) {
        if (!is_whole || subcommand == "bench") continue;
        const auto& limits = trainer::whole_limits_of(name);
        if (!limits.choices.empty()) {
            for (const auto choice : limits.choices)
                EXPECT_EQ(said_of(subcommand, name, std::to_string(choice)), "");
            EXPECT_NE(said_of(subcommand, name, "8"), "");
            continue;
        }
        EXPECT_EQ(said_of(subcommand, name, std::to_string(limits.least)), "") << name;
        EXPECT_EQ(said_of(subcommand, name, std::to_string(limits.most)), "") << name;
        if (limits.least > 0) {
            EXPECT_NE(said_of(subcommand, name, std::to_string(limits.least - 1)), "") << name;
        }
        if (limits.most + 1 != 0) {
            const auto said = said_of(subcommand, name, std::to_string(limits.most + 1));
            EXPECT_NE(said.find(std::to_string(limits.most)), std::string::npos) << said;
        }
    }
}

TEST(NumberArguments, ABenchmarkHasBoundsOfItsOwn) {
    for (const auto& [name, most] : std::vector<std::pair<std::string, int>>{
             {"--threads", 1024}, {"--parameters", 1 << 14}, {"--rounds", 1000}}) {
        EXPECT_EQ(said_of("bench", name, "1"), "");
        EXPECT_EQ(said_of("bench", name, std::to_string(most)), "");
        EXPECT_NE(said_of("bench", name, "0"), "");
        EXPECT_NE(said_of("bench", name, std::to_string(most + 1)), "");
    }
    EXPECT_EQ(said_of("bench", "--threads", "1,2"), "");
    for (const char* text : {"1,2x", "1,,2", ",", ",1", "1,", "1, 2", "1;2", "[1,2]"}) {
        EXPECT_NE(said_of("bench", "--threads", text), "") << text;
    }
}

TEST(NumberArguments, ALeadingZeroIsDecimal) {
    CLI::App app;
    std::int64_t steps = 0;
    app.add_option("--steps", steps);
    check_arguments(app);
    app.parse("--steps 010");
    EXPECT_EQ(steps, 10);
}

TEST(NumberArguments, ListsReplaceTheirDefault) {
    CLI::App app;
    std::vector<int> threads = {1, 2};
    std::vector<std::string> names = {"a", "b"};
    add_list(app, "--threads", threads, "");
    add_list(app, "--optimizers", names, "");
    check_arguments(app);
    EXPECT_NE(app.help().find("1,2"), std::string::npos);
    EXPECT_NE(app.help().find("a,b"), std::string::npos);
    app.parse("--threads 04,8 --optimizers c --optimizers d,e");
    EXPECT_EQ(threads, (std::vector<int>{4, 8}));
    EXPECT_EQ(names, (std::vector<std::string>{"c", "d", "e"}));
    for (const char* text : {"", ",", "a,", "a,,b", ",a"}) {
        EXPECT_NE(said_of("compare", "--optimizers", text), "") << text;
        EXPECT_NE(said_of("bench", "--format", text), "") << text;
    }
}

TEST(NumberArguments, AFlagSaysYesOrNo) {
    for (const char* flag :
         {"--tied", "--overwrite", "--no-final-checkpoint", "--activation-checkpointing"}) {
        for (const char* value : {"", "=true", "=false", "=1", "=0", "=yes", "=OFF"}) {
            EXPECT_EQ(said_of({"train", "--data=x", "--steps=1", std::string(flag) + value}), "")
                << flag << value;
        }
        for (const char* value : {"=7", "=-1", "=2", "=maybe", "=99999999999999999999", "=nan"}) {
            EXPECT_NE(said_of({"train", "--data=x", "--steps=1", std::string(flag) + value}), "")
                << flag << value;
        }
    }
}

TEST(NumberArguments, EmptyTextsAreRefused) {
    for (const char* option :
         {"--out", "--data", "--validation-data", "--json", "--model", "--device", "--schedule"}) {
        for (const char* subcommand : {"train", "compare"}) {
            const auto said = said_of(subcommand, option, "");
            EXPECT_NE(said.find(option), std::string::npos) << subcommand << " " << option << ": " << said;
            EXPECT_NE(said.find("empty"), std::string::npos) << said;
        }
    }
    EXPECT_NE(said_of("bench", "--json", "").find("empty"), std::string::npos);
}

TEST(NumberArguments, ANumberWithoutBoundsIsAMistakeOfTheProgram) {
    CLI::App app;
    int number = 0;
    app.add_option("--unknown-number", number);
    EXPECT_THROW(check_arguments(app), std::logic_error);
}

}  // namespace
}  // namespace flashoptim::app

// Numbers from outside: how they are read and between which bounds they lie. If these fail, a typo trains for
// a week as something else than what was typed, or a product of two options writes behind a buffer.
#include "trainer/limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/data/sampler.h"
#include "trainer/exact_number.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kInt64Max = std::numeric_limits<std::int64_t>::max();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST(ExactNumber, WholeNumbersAreDigitsAlone) {
    const std::vector<std::pair<std::string, std::uint64_t>> read = {
        {"0", 0},
        {"7", 7},
        {"010", 10},
        {"000", 0},
        {"9223372036854775808", std::uint64_t{1} << 63},
        {"18446744073709551615", ~std::uint64_t{0}},
        {"00000000000000000000000000000001", 1}};
    for (const auto& [text, number] : read) EXPECT_EQ(exact_whole_number(text), number) << text;
    for (const std::string text : {"",
                                   " ",
                                   " 5",
                                   "5 ",
                                   "+5",
                                   "-5",
                                   "-0",
                                   "5.0",
                                   "5.",
                                   "1e3",
                                   "0x10",
                                   "0b1",
                                   "1_000",
                                   "1,000",
                                   "1'000",
                                   "5\n",
                                   "five",
                                   "٣",
                                   "５",
                                   "¹",
                                   "NaN",
                                   "inf",
                                   "true",
                                   "18446744073709551616",
                                   "99999999999999999999",
                                   "340282366920938463463374607431768211456",
                                   "5k",
                                   "--5",
                                   "5-",
                                   "0o7",
                                   "$5",
                                   "\t5"}) {
        EXPECT_FALSE(exact_whole_number(text)) << "'" << text << "'";
    }
    EXPECT_FALSE(exact_whole_number(std::string_view("5\0", 2)));
}

TEST(ExactNumber, RealNumbersAreFiniteAndDecimal) {
    const std::vector<std::pair<std::string, double>> read = {
        {"0", 0.0},   {"0.1", 0.1},   {"1e-3", 1e-3}, {"1E-3", 1e-3}, {".5", 0.5},       {"5.", 5.0},
        {"-3", -3.0}, {"1e39", 1e39}, {"1e+2", 1e2},  {"00.5", 0.5},  {"1e-300", 1e-300}};
    for (const auto& [text, number] : read) EXPECT_EQ(exact_real_number(text), number) << text;
    for (const std::string text :
         {"",         " ",     " 1",     "1 ",     "+1",    "nan",  "NaN", "-nan",  "inf", "-inf",
          "Infinity", "1e400", "-1e400", "1e-400", "0x1p3", "0x10", "1,5", "1.5.2", "1e",  "e3",
          ".",        "-",     "1f",     "1_0",    "٣",     "1e3x", "1/3", "50%"}) {
        EXPECT_FALSE(exact_real_number(text)) << "'" << text << "'";
    }
}

// Every number of a run, at both of its bounds and just outside.
TEST(Limits, EveryNumberIsHeldToItsBounds) {
    struct Number {
        std::string option;
        std::function<void(TrainOptions&, std::int64_t)> set;
    };
    const std::vector<Number> numbers = {
        {"--steps", [](TrainOptions& o, std::int64_t n) { o.schedule.total_steps = n; }},
        {"--warmup",
         [](TrainOptions& o, std::int64_t n) { o.schedule.total_steps = o.schedule.warmup_steps = n; }},
        {"--batch", [](TrainOptions& o, std::int64_t n) { o.batch_size = n; }},
        {"--sequence", [](TrainOptions& o, std::int64_t n) { o.sequence_length = n; }},
        {"--accumulation", [](TrainOptions& o, std::int64_t n) { o.accumulation = n; }},
        {"--vocabulary-size", [](TrainOptions& o, std::int64_t n) { o.model.vocabulary_size = n; }},
        {"--eval-every", [](TrainOptions& o, std::int64_t n) { o.evaluation_interval = n; }},
        {"--eval-batches", [](TrainOptions& o, std::int64_t n) { o.evaluation_batches = n; }},
        {"--checkpoint-every", [](TrainOptions& o, std::int64_t n) { o.checkpoint_interval = n; }},
        {"--keep-checkpoints", [](TrainOptions& o, std::int64_t n) { o.kept_checkpoints = n; }},
        {"--threads", [](TrainOptions& o, std::int64_t n) { o.threads = static_cast<int>(n); }},
    };
    for (const auto& [option, set] : numbers) {
        const WholeLimits& limits = whole_limits_of(option);
        const auto said = [&, &set = set](std::int64_t value) {
            TrainOptions options;
            options.out = "out";
            set(options, value);
            return message_of<InvalidArgument>([&] { validate(options); });
        };
        const auto least = static_cast<std::int64_t>(limits.least),
                   most = static_cast<std::int64_t>(limits.most);
        if (option != "--warmup" || least > 0) {
            EXPECT_EQ(said(least), "") << option;
        }
        EXPECT_EQ(said(most), "") << option;
        const bool is_int = option == "--threads";
        for (const std::int64_t value :
             {least - 1, most + 1, std::int64_t{-1}, is_int ? std::int64_t{1} << 30 : kInt64Max,
              is_int ? -(std::int64_t{1} << 30) : std::numeric_limits<std::int64_t>::min()}) {
            const std::string message = said(value);
            const bool is_steps =
                option == "--warmup" && value != most + 1 && value >= 0;  // of both, one is named
            EXPECT_TRUE(contains(message, std::to_string(value))) << option << ": " << message;
            EXPECT_TRUE(is_steps || contains(message, "must be a whole number from "))
                << option << ": " << message;
            EXPECT_EQ(message.find('\n'), std::string::npos);
        }
    }
}

TEST(Limits, EveryRealNumberIsHeldToItsBounds) {
    struct Number {
        std::string option;
        std::function<void(TrainOptions&, double)> set;
        std::vector<double> allowed, refused;
    };
    const std::vector<Number> numbers = {
        {"--lr", [](TrainOptions& o, double x) { o.schedule.peak = x; }, {0.0, 1e-3, 1e39, 1e300}, {-1.0}},
        {"--min-lr-ratio",
         [](TrainOptions& o, double x) { o.schedule.minimum_ratio = x; },
         {0.0, 1.0},
         {-0.1, 1.1}},
        {"--clip", [](TrainOptions& o, double x) { o.clip_norm = x; }, {0.0, 1e300}, {-1e-300}},
        {"--loss-factor",
         [](TrainOptions& o, double x) { o.loss_factor = x; },
         {1e-30, 1e38},
         {0.0, -1.0, 1e39, 1e-39}},
        {"--weight-decay",
         [](TrainOptions& o, double x) { o.optimizer.hyperparameters.weight_decay = x; },
         {0.0, 100.0},
         {-0.1}},
        {"--beta1",
         [](TrainOptions& o, double x) { o.optimizer.hyperparameters.beta1 = x; },
         {0.0, 0.999},
         {-0.1, 1.0, 1.1}},
        {"--beta2",
         [](TrainOptions& o, double x) { o.optimizer.hyperparameters.beta2 = x; },
         {0.0, 0.999},
         {-0.1, 1.0, 1.1}},
        {"--eps",
         [](TrainOptions& o, double x) { o.optimizer.hyperparameters.epsilon = x; },
         {0.0, 1.0},
         {-1e-8, 1e300}},
        {"--momentum",
         [](TrainOptions& o, double x) { o.optimizer.hyperparameters.momentum = x; },
         {0.0, 1.0},
         {-0.1, 1.1}},
    };
    for (const auto& [option, set, allowed, refused] : numbers) {
        const auto said = [&, &set = set](double value) {
            TrainOptions options;
            set(options, value);
            return message_of<InvalidArgument>([&] { validate(options); });
        };
        for (const double value : allowed) EXPECT_EQ(said(value), "") << option << " " << value;
        auto all = refused;
        all.insert(all.end(), {kNaN, kInfinity, -kInfinity});
        for (const double value : all) {
            EXPECT_TRUE(contains(said(value), "must be ")) << option << " " << value << ": " << said(value);
        }
        EXPECT_NO_THROW(real_limits_of(option));
    }
}

// Each within its bounds, and still more tokens than can be counted.
TEST(Limits, TheTokensOfARunAreCounted) {
    TrainOptions options;
    options.schedule.total_steps = 1'000'000'000'000;
    options.batch_size = options.accumulation = 1 << 20;
    options.sequence_length = 1 << 24;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "tokens of all steps"));
    options.accumulation = options.batch_size = 1;
    options.schedule.total_steps = kInt64Max >> 25;
    EXPECT_EQ(message_of<InvalidArgument>([&] { validate(options); }), "");
}

// What a rule or a format does not take is said before anything is trained, also
// before a comparison's first run.
TEST(Limits, NumbersThatARuleOrAFormatDoesNotTake) {
    TrainOptions options;
    options.optimizer.rule = Rule::kLion;
    options.optimizer.hyperparameters.beta2 = 1.0;
    EXPECT_EQ(message_of<InvalidArgument>([&] { validate(options); }), "");
    options.optimizer.rule = Rule::kAdamW;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "beta2"));
    options = {};
    options.optimizer.hyperparameters.nesterov = true;
    options.optimizer.hyperparameters.momentum = 0.0;
    EXPECT_EQ(message_of<InvalidArgument>([&] { validate(options); }), "");
    options.optimizer.rule = Rule::kSGD;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "nesterov"));
    options = {};
    options.optimizer.format = Format::kPaper;
    options.optimizer.master_weight_bits = 16;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "16"));
    options.optimizer.format = Format::kNative;
    EXPECT_EQ(message_of<InvalidArgument>([&] { validate(options); }), "");
}

TEST(Limits, ShapesBeyondCountingAreRefused) {
    LlamaConfig config;
    for (std::int64_t LlamaConfig::* field :
         {&LlamaConfig::vocabulary_size, &LlamaConfig::layers, &LlamaConfig::hidden, &LlamaConfig::dim,
          &LlamaConfig::heads, &LlamaConfig::kv_heads}) {
        for (const std::int64_t value :
             {std::int64_t{0}, std::int64_t{-1}, kInt64Max, std::int64_t{1} << 62}) {
            LlamaConfig changed = config;
            changed.*field = value;
            EXPECT_THROW(parameter_count(changed), InvalidArgument);
        }
    }
    config.dim = config.hidden = config.layers = config.vocabulary_size = 1 << 29;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { parameter_count(config); }), "can be counted"));
}

// The library's own callers may ask for any batch: a product that wraps would be written beyond its buffer.
TEST(Limits, BatchesBeyondCountingAreRefused) {
    const std::int64_t root = std::int64_t{1} << 32;
    for (const auto& [rows, sequence] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{std::int64_t{1} << 62, 4},
                                                            {root, root},
                                                            {kInt64Max, kInt64Max},
                                                            {std::int64_t{1} << 60, 1},
                                                            {0, 1},
                                                            {1, 0},
                                                            {-1, 4},
                                                            {-1, -1}}) {
        for (const bool training : {true, false}) {
            const std::string said = message_of<InvalidArgument>([&, rows = rows, sequence = sequence] {
                if (training) {
                    training_batch({}, 0, 0, 0, rows, sequence);
                } else {
                    validation_batch({}, 0, 1, rows, sequence);
                }
            });
            EXPECT_TRUE(contains(said, std::to_string(rows) + " rows")) << said;
        }
    }
}

}  // namespace
}  // namespace flashoptim::trainer

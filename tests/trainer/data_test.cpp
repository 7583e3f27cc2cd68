// Data, sampling, schedule and options: everything of the trainer that needs no tensor.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "data_fixture.h"
#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/data/file_list.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_source.h"
#include "trainer/data/utf8_text.h"
#include "trainer/schedule.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {
namespace {

// A text that is silently read in another encoding, or cut at the wrong place, trains on nonsense.
TEST(Utf8, AcceptsWellFormedAndFindsTheFirstFault) {
    const auto fault = [](std::string_view text) {
        return first_invalid_utf8(std::as_bytes(std::span(text.data(), text.size())));
    };
    EXPECT_EQ(fault(""), std::nullopt);
    EXPECT_EQ(fault("plain text, long enough for eight at once"), std::nullopt);
    EXPECT_EQ(fault("\xC3\xBC \xE2\x82\xAC \xF0\x9F\x98\x80 \xED\x9F\xBF \xEE\x80\x80 \xF4\x8F\xBF\xBF"),
              std::nullopt);
    EXPECT_EQ(fault("0123456789\xFF"), 10U);     // no lead byte
    EXPECT_EQ(fault("01234567\x80"), 8U);        // continuation without lead
    EXPECT_EQ(fault("ab\xC0\xAF"), 2U);          // overlong, two bytes
    EXPECT_EQ(fault("ab\xE0\x9F\xBF"), 2U);      // overlong, three bytes
    EXPECT_EQ(fault("ab\xF0\x8F\xBF\xBF"), 2U);  // overlong, four bytes
    EXPECT_EQ(fault("ab\xED\xA0\x80"), 2U);      // surrogate
    EXPECT_EQ(fault("ab\xF4\x90\x80\x80"), 2U);  // beyond U+10FFFF
    EXPECT_EQ(fault("\xC3\xBC\xE2\x82"), 2U);    // cut off at the end
    EXPECT_EQ(fault(std::string_view("a\xE2\x82"
                                     "b",
                                     4)),
              1U);  // cut off in the middle
}

// The tokens of a folder must be those of its files in an order that no file system decides.
TEST(ByteText, FolderIsItsFilesInSortedOrderWithoutHiddenOnes) {
    const TemporaryFolder folder;
    folder.write("b.txt", "second ");
    folder.write("a/z.txt", "first ");
    folder.write("c.txt", "");
    folder.write("d.md", "\xC3\xBC");
    folder.write(".hidden", "\xFF");
    folder.write(".git/config", "\xFF");
    const auto source = open_byte_text(folder.path());
    const std::string expected = "first second \xC3\xBC";
    ASSERT_EQ(source->size(), static_cast<std::int64_t>(expected.size()));
    EXPECT_EQ(source->vocabulary_size(), 256);
    const auto tokens = all_tokens(*source);
    for (std::size_t index = 0; index < expected.size(); ++index) {
        EXPECT_EQ(tokens[index], static_cast<unsigned char>(expected[index])) << index;
    }
    std::vector<std::int64_t> middle(4);  // across the border of two files
    source->read(4, middle);
    EXPECT_EQ(middle, (std::vector<std::int64_t>{'t', ' ', 's', 'e'}));
}

// A user with a wrong path or file must read which one and why.
TEST(ByteText, FaultsAreNamed) {
    const TemporaryFolder folder;
    const auto latin1 = folder.write("latin1.txt", "caf\xE9 au lait");
    const auto empty = folder.write("empty.txt", "");
    std::filesystem::create_directories(folder.path() / "nothing");
    const std::string fault = message_of<FormatError>([&] { open_byte_text(latin1); });
    EXPECT_TRUE(contains(fault, latin1.string())) << fault;
    EXPECT_TRUE(contains(fault, "offset 3")) << fault;
    EXPECT_TRUE(contains(message_of<IoError>([&] { open_byte_text(empty); }), "empty.txt is empty"));
    EXPECT_TRUE(contains(message_of<IoError>([&] { open_byte_text(folder.path() / "no.txt"); }),
                         "no.txt does not exist"));
    EXPECT_TRUE(
        contains(message_of<IoError>([&] { open_byte_text(folder.path() / "nothing"); }), "holds no file"));
    EXPECT_TRUE(contains(message_of<IoError>([&] { open_byte_text("/dev/null"); }), "no regular file"));
}

// Both writers' files must give the tokens that they hold, and nothing of a header.
TEST(TokenFile, ReadsNanoGptAndLlmc) {
    const TemporaryFolder folder;
    const std::vector<std::int64_t> expected = {5, 0, 49999, 7, 11};
    const std::vector<std::uint16_t> narrow = {5, 0, 49999, 7, 11};
    const std::vector<std::uint32_t> wide = {5, 0, 49999, 7, 11};
    const auto nano16 = folder.write("nano16.bin", raw(narrow));
    const auto nano32 = folder.write("nano32.bin", raw(wide));
    const auto gpt2 = folder.write("gpt2.bin", llmc(20240520, 1, 5, narrow));
    const auto llama3 = folder.write("llama3.bin", llmc(20240801, 7, 5, wide));
    EXPECT_EQ(all_tokens(*open_token_files(nano16, 50304, kNarrow)), expected);
    EXPECT_EQ(all_tokens(*open_token_files(nano32, 50304, kWide)), expected);
    EXPECT_EQ(all_tokens(*open_token_files(gpt2, 50304, kWide)), expected);
    EXPECT_EQ(all_tokens(*open_token_files(llama3, 50304, kNarrow)), expected);
    EXPECT_TRUE(is_token_data(folder.path()));
    folder.write("readme.txt", "text");
    EXPECT_TRUE(contains(message_of<FormatError>([&] { is_token_data(folder.path()); }), "readme.txt"));
}

TEST(TokenFile, FolderOfShardsIsOneSequence) {
    const TemporaryFolder folder;
    folder.write("train_000001.bin", llmc<std::uint16_t>(20240520, 1, 2, {1, 2}));
    folder.write("train_000002.bin", llmc<std::uint16_t>(20240520, 1, 3, {3, 4, 5}));
    EXPECT_EQ(all_tokens(*open_tokens(folder.path(), 10, kNarrow)),
              (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
}

// A model whose vocabulary is too small is refused, one that is too large wastes memory.
TEST(TokenFile, SmallestVocabularyIsThatOfHeaderOrLargestToken) {
    const TemporaryFolder folder;
    const auto vocabulary = [&](const std::string& name, const std::string& content, RawTokens width) {
        return smallest_vocabulary(folder.write(name, content), width);
    };
    const RawTokens narrow = kNarrow;
    EXPECT_EQ(vocabulary("a/raw.bin", raw<std::uint16_t>({5, 65535, 7}), narrow), 65536);
    EXPECT_EQ(vocabulary("b/raw.bin", raw<std::uint32_t>({5, 128255, 7}), kWide), 128256);
    EXPECT_EQ(vocabulary("c/gpt2.bin", llmc<std::uint16_t>(20240520, 1, 2, {1, 2}), narrow), 50257);
    EXPECT_EQ(vocabulary("d/llama3.bin", llmc<std::uint32_t>(20240801, 7, 2, {1, 2}), narrow), 128256);
    vocabulary("e/1.bin", raw<std::uint16_t>({900, 3}), narrow);
    vocabulary("e/2.bin", raw<std::uint16_t>({4}), narrow);
    EXPECT_EQ(smallest_vocabulary(folder.path() / "e", narrow), 901);
    EXPECT_TRUE(
        contains(message_of<FormatError>([&] { vocabulary("f/odd.bin", "abc", narrow); }), "3 bytes"));
}

TEST(TokenFile, FaultsAreNamed) {
    const TemporaryFolder folder;
    const auto open = [&](const std::string& name, const std::string& content) {
        const auto file = folder.write(name, content);
        return message_of<FormatError>([&] { open_token_files(file, 100, kNarrow); });
    };
    const std::string outside = open("outside.bin", raw<std::uint16_t>({1, 2, 100, 3}));
    EXPECT_TRUE(contains(outside, "outside.bin") && contains(outside, "token 100 at position 2")) << outside;
    EXPECT_TRUE(contains(outside, "vocabulary of 100")) << outside;
    EXPECT_TRUE(contains(open("odd.bin", "abc"), "3 bytes"));
    EXPECT_TRUE(contains(open("cut.bin", llmc<std::uint16_t>(20240520, 1, 9, {1, 2})), "announces 9 tokens"));
    EXPECT_TRUE(contains(open("future.bin", llmc<std::uint16_t>(20240520, 2, 2, {1, 2})), "version 2"));
    const auto empty = folder.write("none.bin", "");
    EXPECT_TRUE(contains(message_of<IoError>([&] { open_token_files(empty, 100, kNarrow); }), "is empty"));
}

// Validation on tokens that were trained on would hide every overfit.
TEST(DataSet, ValidationIsTheEndAndTrainingTheRest) {
    const TemporaryFolder folder;
    DataOptions options;
    options.path = folder.write("text.txt", std::string(1000, 'x'));
    options.validation_fraction = 0.25;
    const DataSet data = open_data(options, 256, 16);
    EXPECT_EQ(data.training.begin, 0);
    EXPECT_EQ(data.training.size, 750);
    EXPECT_EQ(data.validation.begin, 750);
    EXPECT_EQ(data.validation.size, 250);

    options.validation_path = folder.write("other.txt", std::string(100, 'y'));
    const DataSet apart = open_data(options, 256, 16);
    EXPECT_EQ(apart.training.size, 1000);
    EXPECT_EQ(apart.validation.size, 100);
    EXPECT_NE(apart.validation.source, apart.training.source);
}

TEST(DataSet, TooShortPartsAreNamed) {
    const TemporaryFolder folder;
    DataOptions options;
    options.path = folder.write("text.txt", std::string(100, 'x'));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { open_data(options, 256, 16); }),
                         "validation data has 10 tokens"));
    options.validation_fraction = 0.9;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { open_data(options, 256, 16); }),
                         "training data has 10 tokens"));
    options.validation_fraction = 1.0;
    EXPECT_THROW(open_data(options, 256, 16), InvalidArgument);
}

// The published known answers of Philox4x32-10 (Random123, kat_vectors): another
// generator would draw other batches.
TEST(Sampler, PhiloxKnownAnswers) {
    EXPECT_EQ(static_cast<std::uint32_t>(philox(0, 0, 0)), 0x6627e8d5U);
    EXPECT_EQ(static_cast<std::uint32_t>(philox(0, 0, 0) >> 32), 0xe169c58dU);
    const std::uint64_t ones = ~std::uint64_t{0};
    EXPECT_EQ(static_cast<std::uint32_t>(philox(ones, ones, ones)), 0x408f276dU);
    EXPECT_EQ(static_cast<std::uint32_t>(philox(ones, ones, ones) >> 32), 0x41c83b0eU);
    const std::uint64_t pi = philox(0x299f31d0a4093822U, 0x85a308d3243f6a88U, 0x0370734413198a2eU);
    EXPECT_EQ(static_cast<std::uint32_t>(pi), 0xd16cfe09U);
    EXPECT_EQ(static_cast<std::uint32_t>(pi >> 32), 0x94fdccebU);
}

class Windows : public testing::Test {
protected:
    // Token k is k: a window shows its own place.
    Windows() {
        std::vector<std::uint16_t> tokens(5000);
        for (std::size_t index = 0; index < tokens.size(); ++index) {
            tokens[index] = static_cast<std::uint16_t>(index);
        }
        source_ = open_token_files(folder_.write("count.bin", raw(tokens)), 5000, kNarrow);
        range_ = {source_.get(), 1000, 3000};
    }
    TemporaryFolder folder_;
    std::unique_ptr<TokenSource> source_;
    TokenRange range_;
};

// Resuming draws the batches of the steps that are left from the step number alone.
TEST_F(Windows, DependOnSeedStepAndRowOnly) {
    const TokenBatch batch = training_batch(range_, 7, 42, 0, 16, 8);
    EXPECT_EQ(batch.inputs, training_batch(range_, 7, 42, 0, 16, 8).inputs);
    EXPECT_NE(batch.inputs, training_batch(range_, 8, 42, 0, 16, 8).inputs);
    EXPECT_NE(batch.inputs, training_batch(range_, 7, 43, 0, 16, 8).inputs);
    for (std::int64_t part = 0; part < 4; ++part) {  // four micro-batches are the same rows
        const TokenBatch micro = training_batch(range_, 7, 42, part * 4, 4, 8);
        EXPECT_TRUE(std::equal(micro.inputs.begin(), micro.inputs.end(), batch.inputs.begin() + part * 32));
        EXPECT_TRUE(
            std::equal(micro.targets.begin(), micro.targets.end(), batch.targets.begin() + part * 32));
    }
}

// Targets off by one, or windows outside the range, would train on the wrong
// question or on the validation data.
TEST_F(Windows, TargetsAreTheNextTokensAndStayInRange) {
    std::set<std::int64_t> begins;
    for (std::int64_t step = 0; step < 500; ++step) {
        const TokenBatch batch = training_batch(range_, 1, step, 0, 16, 8);
        for (std::size_t index = 0; index < batch.inputs.size(); ++index) {
            ASSERT_EQ(batch.targets[index], batch.inputs[index] + 1);
            ASSERT_GE(batch.inputs[index], 1000);
            ASSERT_LT(batch.targets[index], 4000);
        }
        for (std::size_t row = 0; row < 16; ++row) {
            begins.insert(batch.inputs[row * 8]);
        }
    }
    // 8,000 draws of 2,992 places: each is missed with chance e^-2.67, so 2,785 +- 14 are expected to be hit.
    EXPECT_GT(begins.size(), 2700U);
    EXPECT_EQ(*begins.begin(), 1000);
    EXPECT_GE(*begins.rbegin(), 3980);
}

TEST_F(Windows, ValidationIsSpreadOverTheWholeRange) {
    const TokenBatch first = validation_batch(range_, 0, 4, 2, 8);
    const TokenBatch last = validation_batch(range_, 3, 4, 2, 8);
    EXPECT_EQ(first.inputs.front(), 1000);
    EXPECT_EQ(last.targets.back(), 3999);
    EXPECT_EQ(first.inputs, validation_batch(range_, 0, 4, 2, 8).inputs);
    const TokenBatch only = validation_batch({source_.get(), 10, 9}, 0, 1, 1, 8);
    EXPECT_EQ(only.inputs.front(), 10);
    EXPECT_EQ(only.targets.back(), 18);
}

// Learning rates that differ from the documented formula make runs incomparable with other trainers.
TEST(ScheduleTest, FollowsItsFormula) {
    Schedule schedule;
    schedule.peak = 2.0;
    schedule.minimum_ratio = 0.1;
    schedule.warmup_steps = 4;
    schedule.total_steps = 14;
    for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kCosine, ScheduleKind::kLinear}) {
        schedule.kind = kind;
        EXPECT_DOUBLE_EQ(schedule.at(0), 0.5);
        EXPECT_DOUBLE_EQ(schedule.at(3), 2.0);
        EXPECT_DOUBLE_EQ(schedule.at(4), 2.0);
    }
    schedule.kind = ScheduleKind::kConstant;
    EXPECT_DOUBLE_EQ(schedule.at(13), 2.0);
    schedule.kind = ScheduleKind::kLinear;
    EXPECT_DOUBLE_EQ(schedule.at(9), 1.1);
    EXPECT_DOUBLE_EQ(schedule.at(14), 0.2);
    schedule.kind = ScheduleKind::kCosine;
    EXPECT_NEAR(schedule.at(9), 1.1, 1e-15);
    EXPECT_NEAR(schedule.at(13), 0.2 + 0.9 * (1.0 + std::cos(0.9 * 3.14159265358979323846)), 1e-14);
    EXPECT_NEAR(schedule.at(14), 0.2, 1e-15);
    EXPECT_NEAR(schedule.at(100), 0.2, 1e-15);
    schedule.warmup_steps = 0;
    EXPECT_DOUBLE_EQ(schedule.at(0), 2.0);
}

TEST(ScheduleTest, NamesAndFaults) {
    for (const char* name : {"constant", "cosine", "linear"}) {
        EXPECT_EQ(schedule_name(parse_schedule(name)), name);
    }
    EXPECT_TRUE(contains(message_of<InvalidArgument>([] { parse_schedule("step"); }), "'step'"));
    Schedule schedule;
    schedule.warmup_steps = 2;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(schedule); }), "warm-up"));
    schedule = {};
    schedule.peak = std::nan("");
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(schedule); }), "learning rate"));
}

// Combinations that cannot work must say so before anything is trained.
TEST(Options, ExclusionsAreRefusedByName) {
    TrainOptions options;
    EXPECT_NO_THROW(validate(options));
    options.optimizer.gradient_release = true;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "cannot clip"));
    options.clip_norm = 0.0;
    EXPECT_NO_THROW(validate(options));
    options.accumulation = 2;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "accumul"));
    options = {};
    options.batch_size = 0;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "batch size is 0"));
    options = {};
    options.checkpoint_interval = 5;
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { validate(options); }), "out folder"));
    for (const char* name : {"sgd", "sgdw", "adam", "adamw", "lion"}) {
        EXPECT_EQ(rule_name(parse_rule(name)), name);
    }
    for (const char* name : {"native", "paper", "fp32"}) {
        EXPECT_EQ(name_of(parse_format(name)), name);
    }
    EXPECT_TRUE(contains(message_of<InvalidArgument>([] { parse_rule("adagrad"); }), "adamw"));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([] { parse_format("int4"); }), "native"));
}

}  // namespace
}  // namespace flashoptim::trainer

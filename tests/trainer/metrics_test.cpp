// metrics.csv: what is written reads back, what a killed run left unfinished goes, what is whole stays.
#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "temporary_folder.h"

namespace flashoptim::trainer {
namespace {

StepRecord row(std::int64_t step) {
    StepRecord record;
    record.step = step;
    record.loss = 0.1 * static_cast<double>(step);
    record.learning_rate = 1e-3;
    record.tokens = step * 100;
    if (step % 2 == 0) {
        record.validation_loss = 1.5;
        record.gradient_norm = 0.25;
        record.optimizer_seconds = 0.5;
    }
    return record;
}

class Metrics : public testing::Test {
protected:
    MetricsFile open(std::int64_t last_step) {
        return {file_, file_, last_step, [this](const std::string& line) { notices_.push_back(line); }};
    }
    std::string write_rows(std::int64_t count) {
        MetricsFile metrics = open(0);
        for (std::int64_t step = 1; step <= count; ++step) metrics.append(row(step));
        metrics.sync();
        return read_all(file_);
    }

    TemporaryFolder folder_;
    std::filesystem::path file_ = folder_.path() / "metrics.csv";
    std::vector<std::string> notices_;
};

// A plot over a file with the steps of a killed run twice in it would show a run that never was.
TEST_F(Metrics, RowsAfterTheResumedStepAreDropped) {
    const std::string whole = write_rows(5);
    std::ofstream(file_, std::ios::app) << "6,0.6";  // killed while writing
    {
        MetricsFile metrics = open(3);
        EXPECT_EQ(read_all(file_), whole.substr(0, whole.find("\n4,") + 1));
        metrics.append(row(4));
        metrics.append(row(5));
    }
    EXPECT_EQ(read_all(file_), whole);
    EXPECT_NE(whole.find("\n2,0.2,1.5,0.001,0.25,200,0,0,0.5,0\n"), std::string::npos) << whole;
    EXPECT_NE(whole.find("\n3,0.30000000000000004,,0.001,,300,0,0,,0\n"), std::string::npos) << whole;
    EXPECT_TRUE(notices_.empty());

    std::ofstream(file_) << "step,other\n1,2\n";
    EXPECT_THROW(open(1), FormatError);
    EXPECT_NO_THROW(open(0));
}

// Wherever a row ends, it is there in whole or not at all.
TEST_F(Metrics, ATornRowIsCutOffAtEveryByte) {
    const std::string whole = write_rows(3);
    const std::size_t last = whole.find("\n3,") + 1;
    for (std::size_t bytes = whole.find('\n') + 1; bytes <= whole.size(); ++bytes) {
        std::ofstream(file_) << whole.substr(0, bytes);
        open(3);
        const std::string kept = read_all(file_);
        EXPECT_TRUE(whole.starts_with(kept) && kept.ends_with('\n')) << kept;
        EXPECT_EQ(kept.size() == whole.size(), bytes == whole.size());
        if (bytes >= last) {
            EXPECT_GE(kept.size(), last);
        }
    }
}

// What another program writes into the file must not cost the rows behind it.
TEST_F(Metrics, LinesThatAreNoRowsDoNotEndTheFile) {
    const std::string whole = write_rows(4);
    const std::size_t third = whole.find("\n3,") + 1;
    for (const std::string line : {"adamw native: step 2", "", "3", "2,0.2,1.5,0.001,0.25,200,0,0,0.5,0",
                                   "3,,,", "3,a,b,c,d,e,f,g,h,i", "-3,0.2,1.5,0.001,0.25,200,0,0,0.5,0",
                                   "99999999999999999999,0.2,1.5,0.001,0.25,200,0,0,0.5,0"}) {
        std::ofstream(file_) << whole.substr(0, third) << line << "\n" << whole.substr(third);
        notices_.clear();
        open(4);
        EXPECT_EQ(read_all(file_), whole) << line;
        ASSERT_EQ(notices_.size(), 1U) << line;
        EXPECT_NE(notices_[0].find("1 line"), std::string::npos) << notices_[0];
    }
}

// A plot with a hole in it is told.
TEST_F(Metrics, RowsThatAreMissingAreNoted) {
    const std::string whole = write_rows(5);
    const auto notices_of = [&](const std::string& text, std::int64_t last_step) {
        notices_.clear();
        std::ofstream(file_) << text;
        open(last_step);
        return notices_;
    };
    const auto from = [&](int step) { return whole.find("\n" + std::to_string(step) + ",") + 1; };
    EXPECT_TRUE(notices_of(whole, 4).empty());
    EXPECT_TRUE(notices_of(whole.substr(0, from(1)) + whole.substr(from(3)), 5).empty());  // begun at step 3
    for (const auto& [text, lost] :
         {std::pair{std::string(), "5 rows"}, std::pair{whole.substr(0, from(4)), "2 rows"},
          std::pair{whole.substr(0, from(3)) + whole.substr(from(4)), "1 row "}}) {
        const auto notices = notices_of(text, 5);
        ASSERT_EQ(notices.size(), 1U) << text;
        EXPECT_NE(notices[0].find(lost), std::string::npos) << notices[0];
    }
}

// A disk that is full in the middle of a row leaves no half of it.
TEST_F(Metrics, ARowThatDoesNotFitIsNotThere) {
    const std::string two = write_rows(2);
    const auto previous = std::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    MetricsFile metrics = open(2);
    for (std::size_t more = 0; more < 30; more += 5) {
        const rlimit limit{two.size() + more, before.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        EXPECT_THROW(metrics.append(row(4)), IoError);
        EXPECT_EQ(read_all(file_), two);
    }
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, previous);
    metrics.append(row(3));
    EXPECT_TRUE(read_all(file_).starts_with(two + "3,"));
}

}  // namespace
}  // namespace flashoptim::trainer

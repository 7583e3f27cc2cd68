// Which backend serves a call. If these fail, a program dies of an illegal instruction, or of an
// environment that it never asked.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "../support/step_cases.h"
#include "step/processor.h"

namespace flashoptim {

namespace {

/// A processor with everything, but for what a test takes from it.
struct MadeUpProcessor {
    std::uint32_t last_leaf = 0x20, last_extended_leaf = 0x80000008U;
    std::uint64_t xcr0 = 0xe7;
    const X86Feature* missing = nullptr;
};
MadeUpProcessor made_up;

CpuidAnswer made_up_cpuid(std::uint32_t leaf) {
    if (leaf == 0) return {made_up.last_leaf, 0, 0, 0};
    if (leaf == 0x80000000U) return {made_up.last_extended_leaf, 0, 0, 0};
    CpuidAnswer answer{~0U, ~0U, ~0U, ~0U};
    if (made_up.missing != nullptr && made_up.missing->leaf == leaf) {
        const auto without = ~(1U << static_cast<unsigned>(made_up.missing->bit));
        (made_up.missing->where == CpuidRegister::kEbx ? answer.ebx : answer.ecx) = without;
    }
    return answer;
}

bool made_up_reaches(X86Level level) {
    return reaches({&made_up_cpuid, [] { return made_up.xcr0; }}, level);
}

constexpr X86Level kLevels[] = {X86Level::kV3, X86Level::kV4, X86Level::kV4WithVbmi};

}  // namespace

TEST(Processor, NeedsEveryBitThatTheCompilerMayUse) {
    made_up = {};
    for (const auto level : kLevels) EXPECT_TRUE(made_up_reaches(level));
    for (const auto& feature : kX86Features) {
        made_up = {};
        made_up.missing = &feature;
        for (const auto level : kLevels) {
            EXPECT_EQ(made_up_reaches(level), level < feature.level) << feature.macro;
        }
    }
}

TEST(Processor, NeedsAnOperatingSystemThatKeepsTheRegisters) {
    made_up = {};
    for (const std::uint64_t missing : {0x2U, 0x4U}) {
        made_up.xcr0 = 0xe7 & ~missing;
        for (const auto level : kLevels) EXPECT_FALSE(made_up_reaches(level)) << missing;
    }
    for (const std::uint64_t missing : {0x20U, 0x40U, 0x80U}) {
        made_up.xcr0 = 0xe7 & ~missing;
        for (const auto level : kLevels) EXPECT_EQ(made_up_reaches(level), level == X86Level::kV3) << missing;
    }
}

TEST(Processor, IsNotAskedForLeavesThatItDoesNotHave) {
    made_up = {};
    made_up.last_leaf = 6;  // beyond the last one CPUID answers with anything
    for (const auto level : kLevels) EXPECT_FALSE(made_up_reaches(level));
    made_up = {};
    made_up.last_extended_leaf = 0;
    for (const auto level : kLevels) EXPECT_FALSE(made_up_reaches(level));
}

namespace {

/// Everything that is computed on the CPU, by an optimizer that names its backend.
void use_everything(Backend backend, NonFinite policy) {
    OptimizerOptions options;
    options.backend = backend;
    options.nonfinite = policy;
    Tensor weight(DType::kFloat32, {100});
    Tensor gradient(DType::kFloat32, {100});
    gradient.fill([] { return 0.5; });
    Optimizer optimizer(Rule::kAdamW, {}, options);
    const auto p = optimizer.add_parameter(weight.view());
    optimizer.set_gradient(p, gradient.view());
    if (optimizer.grad_norm() != 5.0) std::exit(4);
    optimizer.step();
}

[[noreturn]] void use_backends_in_a_bad_environment() {
    ::setenv("FLASHOPTIM_BACKEND", "fastest", 1);
    for (const auto backend : available_backends()) {
        for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep, NonFinite::kError}) {
            use_everything(backend, policy);
        }
    }
    ThreadPool pool(1);
    for (int attempt = 0; attempt < 2; ++attempt) {
        try {
            (void)grad_norm({}, pool);
            std::exit(5);
        } catch (const InvalidArgument&) {  // as it should
        }
    }
    std::fprintf(stderr, "served\n");
    std::exit(0);
}

}  // namespace

// The environment is read once for a process, so this has a process of its own.
TEST(BackendsDeathTest, ABadEnvironmentIsNoMatterOfThoseWhoNameABackend) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_EXIT(use_backends_in_a_bad_environment(), ::testing::ExitedWithCode(0), "served");
}

}  // namespace flashoptim

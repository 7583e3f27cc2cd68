// The C header in a C++ program, and its enumerators beside those of the C++ headers: if they part, a C caller silently trains with
// another rule, format or dtype than the one it named.
#include <gtest/gtest.h>

#include <type_traits>

#include "flashoptim/c_api.h"
#include "flashoptim/flashoptim.h"

namespace flashoptim {

template <class Enum, class CEnum>
void expect_same(Enum ours, CEnum theirs) {
    EXPECT_EQ(static_cast<int>(ours), static_cast<int>(theirs));
}

TEST(CApiInCpp, EnumeratorsAreThoseOfTheLibrary) {
    expect_same(DType::kFloat32, FLASHOPTIM_FLOAT32);
    expect_same(DType::kBFloat16, FLASHOPTIM_BFLOAT16);
    expect_same(DType::kFloat16, FLASHOPTIM_FLOAT16);
    expect_same(Rule::kSGD, FLASHOPTIM_SGD);
    expect_same(Rule::kSGDW, FLASHOPTIM_SGDW);
    expect_same(Rule::kAdam, FLASHOPTIM_ADAM);
    expect_same(Rule::kAdamW, FLASHOPTIM_ADAMW);
    expect_same(Rule::kLion, FLASHOPTIM_LION);
    expect_same(Format::kNative, FLASHOPTIM_FORMAT_NATIVE);
    expect_same(Format::kPaper, FLASHOPTIM_FORMAT_PAPER);
    expect_same(Format::kFloat32, FLASHOPTIM_FORMAT_FLOAT32);
    expect_same(NonFinite::kSkipElement, FLASHOPTIM_NONFINITE_SKIP_ELEMENT);
    expect_same(NonFinite::kSkipStep, FLASHOPTIM_NONFINITE_SKIP_STEP);
    expect_same(NonFinite::kError, FLASHOPTIM_NONFINITE_ERROR);
    expect_same(Backend::kAutomatic, FLASHOPTIM_BACKEND_AUTOMATIC);
    expect_same(Backend::kScalar, FLASHOPTIM_BACKEND_SCALAR);
    expect_same(Backend::kPortable, FLASHOPTIM_BACKEND_PORTABLE);
    expect_same(Backend::kAvx2, FLASHOPTIM_BACKEND_AVX2);
    expect_same(Backend::kAvx512, FLASHOPTIM_BACKEND_AVX512);
    expect_same(Backend::kAvx512Vbmi, FLASHOPTIM_BACKEND_AVX512_VBMI);
    expect_same(Backend::kNeon, FLASHOPTIM_BACKEND_NEON);
    expect_same(Moment::kFirst, FLASHOPTIM_FIRST_MOMENT);
    expect_same(Moment::kSecond, FLASHOPTIM_SECOND_MOMENT);
}

// Other languages describe the structs by hand: a field that moves would be read from another place.
TEST(CApiInCpp, StructsLieAsDocumented) {
    EXPECT_TRUE(std::is_standard_layout_v<flashoptim_options>);
    EXPECT_EQ(offsetof(flashoptim_options, format), sizeof(size_t));
    EXPECT_EQ(offsetof(flashoptim_options, min_quantized_numel), sizeof(size_t) + 8 * sizeof(std::int32_t));
    EXPECT_EQ(offsetof(flashoptim_options, place),
              sizeof(size_t) + 8 * sizeof(std::int32_t) + 2 * sizeof(std::int64_t));
    EXPECT_EQ(sizeof(flashoptim_options),
              sizeof(size_t) + 10 * sizeof(std::int32_t) + 2 * sizeof(std::int64_t) + sizeof(void*));
    EXPECT_EQ(sizeof(flashoptim_hyperparameters),
              sizeof(size_t) + 8 * sizeof(double) + 4 * sizeof(std::int32_t));
    EXPECT_EQ(sizeof(flashoptim_memory), sizeof(size_t) + 7 * sizeof(std::uint64_t));
}

// A C caller who passes NULL must train as a C++ caller who passes nothing.
TEST(CApiInCpp, DefaultsAreThoseOfTheLibrary) {
    flashoptim_hyperparameters h{};
    ASSERT_EQ(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_LION), FLASHOPTIM_OK);
    EXPECT_EQ(h.learning_rate, LionOptions{}.learning_rate);
    EXPECT_EQ(h.beta2, LionOptions{}.beta2);
    ASSERT_EQ(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_ADAMW), FLASHOPTIM_OK);
    EXPECT_EQ(h.weight_decay, AdamWOptions{}.weight_decay);
    EXPECT_EQ(h.epsilon, AdamWOptions{}.epsilon);
    flashoptim_options options{};
    ASSERT_EQ(flashoptim_options_init(&options, sizeof options), FLASHOPTIM_OK);
    EXPECT_EQ(options.master_weight_bits, StorageOptions{}.master_weight_bits);
    EXPECT_EQ(options.min_quantized_numel_1d, StorageOptions{}.min_quantized_numel_1d);
    EXPECT_EQ(options.place, FLASHOPTIM_HOST);
}

}  // namespace flashoptim

// The C header in a C++ program, and what lies where in its structs: if that changed, other languages would
// read and write other fields.
#include <gtest/gtest.h>

#include <type_traits>

#include "flashoptim/c_api.h"
#include "flashoptim/flashoptim.h"

namespace flashoptim {

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
              sizeof(size_t) + 12 * sizeof(double) + 6 * sizeof(std::int32_t));
    EXPECT_EQ(offsetof(flashoptim_hyperparameters, beta3),
              sizeof(size_t) + 8 * sizeof(double) + 4 * sizeof(std::int32_t));
    EXPECT_EQ(offsetof(flashoptim_tensor, data), sizeof(size_t));
    EXPECT_EQ(offsetof(flashoptim_tensor, shape), sizeof(size_t) + sizeof(void*) + 2 * sizeof(std::int32_t));
    EXPECT_EQ(sizeof(flashoptim_tensor), sizeof(size_t) + 3 * sizeof(void*) + 2 * sizeof(std::int32_t));
    EXPECT_EQ(offsetof(flashoptim_shard, whole_shape), sizeof(size_t));
    EXPECT_EQ(sizeof(flashoptim_shard), sizeof(size_t) + 3 * sizeof(void*));
    EXPECT_EQ(sizeof(flashoptim_memory), sizeof(size_t) + 7 * sizeof(std::uint64_t));
}

// Nobody sets the padding behind a last field: a later version that gave it a meaning would read garbage from
// the programs of this one.
TEST(CApiInCpp, StructsEndWithAField) {
    const auto ends_at = [](std::size_t size, std::size_t last, std::size_t bytes) {
        return last + bytes == size;
    };
    EXPECT_TRUE(ends_at(sizeof(flashoptim_options), offsetof(flashoptim_options, stream), sizeof(void*)));
    EXPECT_TRUE(ends_at(sizeof(flashoptim_hyperparameters), offsetof(flashoptim_hyperparameters, reserved2),
                        sizeof(std::int32_t)));
    EXPECT_TRUE(ends_at(sizeof(flashoptim_tensor), offsetof(flashoptim_tensor, strides), sizeof(void*)));
    EXPECT_TRUE(ends_at(sizeof(flashoptim_shard), offsetof(flashoptim_shard, offset), sizeof(void*)));
    EXPECT_TRUE(
        ends_at(sizeof(flashoptim_memory), offsetof(flashoptim_memory, parameters), sizeof(std::int64_t)));
}

// A C caller who passes NULL must train as a C++ caller who passes nothing.
TEST(CApiInCpp, DefaultsAreThoseOfTheLibrary) {
    flashoptim_hyperparameters h{};
    ASSERT_EQ(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_LION), FLASHOPTIM_OK);
    EXPECT_EQ(h.learning_rate, LionHyperparameters{}.learning_rate);
    EXPECT_EQ(h.beta2, LionHyperparameters{}.beta2);
    ASSERT_EQ(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_ADAMW), FLASHOPTIM_OK);
    EXPECT_EQ(h.weight_decay, AdamWHyperparameters{}.weight_decay);
    EXPECT_EQ(h.epsilon, AdamWHyperparameters{}.epsilon);
    flashoptim_options options{};
    ASSERT_EQ(flashoptim_options_init(&options, sizeof options), FLASHOPTIM_OK);
    EXPECT_EQ(options.master_weight_bits, StorageOptions{}.master_weight_bits);
    EXPECT_EQ(options.min_quantized_numel_1d, StorageOptions{}.min_quantized_numel_1d);
    EXPECT_EQ(options.place, FLASHOPTIM_HOST);
}

// A number that C takes for one rule and the library for another would train with the wrong one.
TEST(CApiInCpp, NamesOfRulesAndMomentsAreThoseOfTheTable) {
    for (const auto& traits : kRules) {
        const auto rule = static_cast<std::int32_t>(traits.rule);
        EXPECT_EQ(flashoptim_rule_name(rule), traits.name);
        for (std::size_t n = 0; n < traits.moments.size(); ++n) {
            EXPECT_EQ(flashoptim_moment_name(rule, static_cast<std::int32_t>(n)), traits.moments[n].name);
        }
        EXPECT_EQ(flashoptim_moment_name(rule, static_cast<std::int32_t>(traits.moments.size())), nullptr);
        EXPECT_EQ(flashoptim_moment_name(rule, -1), nullptr);
        EXPECT_EQ(flashoptim_moment_name(rule, INT32_MAX), nullptr);
    }
    for (const std::int32_t none :
         {-1, static_cast<std::int32_t>(kRules.size()), 256, 512, INT32_MAX, INT32_MIN}) {
        EXPECT_EQ(flashoptim_rule_name(none), nullptr);
        EXPECT_EQ(flashoptim_moment_name(none, 0), nullptr);
    }
}

}  // namespace flashoptim

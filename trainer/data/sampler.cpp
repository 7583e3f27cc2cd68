// Counter-based random windows for training and fixed ones for validation. Keeps no state.
#include "trainer/data/sampler.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/system/checked_arithmetic.h"

namespace flashoptim::trainer {
namespace {

TokenBatch empty_batch(std::int64_t rows, std::int64_t sequence) {
    const std::array<std::int64_t, 3> in_bytes = {rows, sequence, sizeof(std::int64_t)};
    const auto bytes = checked_numel(in_bytes);
    if (!bytes || *bytes == 0) {
        throw InvalidArgument("a batch of " + std::to_string(rows) + " rows of " + std::to_string(sequence) +
                              " tokens cannot be made; take at least 1 of each and fewer than 2^60 in all");
    }
    const auto elements = static_cast<std::size_t>(*bytes) / sizeof(std::int64_t);
    return {rows, sequence, std::vector<std::int64_t>(elements), std::vector<std::int64_t>(elements)};
}

void fill_row(TokenBatch& batch, std::int64_t row, const TokenRange& data, std::int64_t offset) {
    const auto sequence = static_cast<std::size_t>(batch.sequence);
    std::vector<std::int64_t> window(sequence + 1);
    data.source->read(data.begin + offset, window);
    const std::int64_t first = row * batch.sequence;
    std::copy(window.begin(), window.end() - 1, batch.inputs.begin() + first);
    std::copy(window.begin() + 1, window.end(), batch.targets.begin() + first);
}

}  // namespace

std::uint64_t philox(std::uint64_t key, std::uint64_t counter_low, std::uint64_t counter_high) {
    constexpr std::uint64_t kMultiplier0 = 0xD2511F53U;
    constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57U;
    constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
    constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;
    const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
    const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
    std::array<std::uint32_t, 4> c = {low(counter_low), high(counter_low), low(counter_high),
                                      high(counter_high)};
    std::uint32_t key0 = low(key);
    std::uint32_t key1 = high(key);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = kMultiplier0 * c[0];
        const std::uint64_t product1 = kMultiplier1 * c[2];
        c = {high(product1) ^ c[1] ^ key0, low(product1), high(product0) ^ c[3] ^ key1, low(product0)};
        key0 += kWeyl0;
        key1 += kWeyl1;
    }
    return (std::uint64_t{c[1]} << 32) | c[0];
}

TokenBatch training_batch(const TokenRange& data, std::uint64_t seed, std::int64_t step,
                          std::int64_t first_row, std::int64_t rows, std::int64_t sequence) {
    TokenBatch batch = empty_batch(rows, sequence);
    // A window needs one token more than `sequence`; the remainder's bias is the count over 2^64.
    const auto places = static_cast<std::uint64_t>(data.size - sequence);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::uint64_t drawn =
            philox(seed, static_cast<std::uint64_t>(first_row + row), static_cast<std::uint64_t>(step));
        fill_row(batch, row, data, static_cast<std::int64_t>(drawn % places));
    }
    return batch;
}

TokenBatch validation_batch(const TokenRange& data, std::int64_t index, std::int64_t count, std::int64_t rows,
                            std::int64_t sequence) {
    TokenBatch batch = empty_batch(rows, sequence);
    const std::int64_t last_place = data.size - sequence - 1;
    const std::int64_t windows = std::max<std::int64_t>(1, count * rows - 1);
    for (std::int64_t row = 0; row < rows; ++row) {
        // Double: the product of place and window may leave 64 bits in huge files; the places need no last
        // digit.
        const double share = static_cast<double>(index * rows + row) / static_cast<double>(windows);
        fill_row(batch, row, data,
                 std::min(last_place, static_cast<std::int64_t>(share * static_cast<double>(last_place))));
    }
    return batch;
}

}  // namespace flashoptim::trainer

// XXH64 with seed 0 (Collet, xxHash specification 0.2.0): the sum that `xxhsum -H1` prints. Knows no files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace flashoptim::trainer {

/// A running 64-bit hash: feed it the bytes in order, in pieces of any size. It finds accidents at several GB/s; it is no
/// protection against somebody who makes two files with one sum on purpose. Little-endian machines only, as the rest of the trainer.
class XxHash64 {
public:
    void update(std::span<const std::byte> bytes) {
        if (bytes.empty()) {
            return;
        }
        length_ += bytes.size();
        if (held_ > 0) {
            const std::size_t count = std::min(bytes.size(), kStripe - held_);
            std::memcpy(buffer_.data() + held_, bytes.data(), count);
            held_ += count;
            bytes = bytes.subspan(count);
            if (held_ < kStripe) {
                return;
            }
            mix_stripe(buffer_.data());
            held_ = 0;
        }
        while (bytes.size() >= kStripe) {
            mix_stripe(bytes.data());
            bytes = bytes.subspan(kStripe);
        }
        std::memcpy(buffer_.data(), bytes.data(), bytes.size());
        held_ = bytes.size();
    }

    /// Hash of everything fed so far.
    std::uint64_t value() const {
        std::uint64_t hash = kPrime5;
        if (length_ >= kStripe) {
            hash =
                rotate(lanes_[0], 1) + rotate(lanes_[1], 7) + rotate(lanes_[2], 12) + rotate(lanes_[3], 18);
            for (const std::uint64_t lane : lanes_) {
                hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
            }
        }
        hash += length_;
        std::size_t at = 0;
        for (; at + 8 <= held_; at += 8) {
            hash = rotate(hash ^ round(0, load<std::uint64_t>(buffer_.data() + at)), 27) * kPrime1 + kPrime4;
        }
        if (at + 4 <= held_) {
            hash =
                rotate(hash ^ (load<std::uint32_t>(buffer_.data() + at) * kPrime1), 23) * kPrime2 + kPrime3;
            at += 4;
        }
        for (; at < held_; ++at) {
            hash = rotate(hash ^ (std::to_integer<std::uint64_t>(buffer_[at]) * kPrime5), 11) * kPrime1;
        }
        hash = (hash ^ (hash >> 33)) * kPrime2;
        hash = (hash ^ (hash >> 29)) * kPrime3;
        return hash ^ (hash >> 32);
    }

private:
    static constexpr std::size_t kStripe = 32;
    static constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87U;
    static constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4FU;
    static constexpr std::uint64_t kPrime3 = 0x165667B19E3779F9U;
    static constexpr std::uint64_t kPrime4 = 0x85EBCA77C2B2AE63U;
    static constexpr std::uint64_t kPrime5 = 0x27D4EB2F165667C5U;

    template <typename Integer>
    static std::uint64_t load(const std::byte* from) {
        Integer value = 0;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static constexpr std::uint64_t rotate(std::uint64_t value, int bits) {
        return (value << bits) | (value >> (64 - bits));
    }
    static constexpr std::uint64_t round(std::uint64_t lane, std::uint64_t input) {
        return rotate(lane + input * kPrime2, 31) * kPrime1;
    }
    void mix_stripe(const std::byte* from) {
        for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
            lanes_[lane] = round(lanes_[lane], load<std::uint64_t>(from + 8 * lane));
        }
    }

    std::array<std::uint64_t, 4> lanes_ = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
    std::array<std::byte, kStripe> buffer_{};
    std::size_t held_ = 0;
    std::uint64_t length_ = 0;
};

}  // namespace flashoptim::trainer

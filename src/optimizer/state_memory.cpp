#include "state_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

namespace flashoptim {

namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21U;
constexpr std::size_t kSmallestBlock = std::size_t{1} << 18U, kLargestBlock = std::size_t{1} << 24U;
constexpr std::size_t kCacheLine = 64, kPage = 4096;
constexpr std::size_t kStagger = 832;  // whole cache lines

constexpr std::size_t round_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

/// Maps zeroed memory that is not touched yet. It begins `stagger` bytes after the start of a huge page.
std::shared_ptr<std::byte> map_pages(std::size_t size, std::size_t stagger) {
    const std::size_t mapped =
        size + stagger + kHugePage;  // the bytes skipped for alignment are never touched
    void* begin = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (begin == MAP_FAILED) throw std::bad_alloc();
    std::shared_ptr<std::byte> owner(static_cast<std::byte*>(begin),
                                     [mapped](std::byte* pages) { ::munmap(pages, mapped); });
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    auto* const first = owner.get() + (kHugePage - address % kHugePage) % kHugePage;
#if defined(MADV_HUGEPAGE)
    // Only for whole huge pages, so that the end of the last one wastes no memory. The kernel may refuse the
    // advice.
    if (size + stagger >= kHugePage) {
        ::madvise(first, (size + stagger) / kHugePage * kHugePage, MADV_HUGEPAGE);
    }
#endif
    return {std::move(owner), first + stagger};
}

}  // namespace

std::shared_ptr<std::byte> StateArena::take(std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    // A separate allocation, so that AddressSanitizer sees writes beyond the end of each buffer.
    const std::shared_ptr<std::byte[]> apart = std::make_unique<std::byte[]>(bytes);
    return {apart, apart.get()};
#endif
    if (bytes > size_ - used_) {
        // As large as all blocks before it together: few blocks are needed, and little of the last one is
        // unused.
        const auto size =
            std::max(round_up(bytes, kCacheLine), std::clamp(total_, kSmallestBlock, kLargestBlock));
        block_ = map_pages(size, 0);
        size_ = size;
        total_ += size;
        used_ = 0;
    }
    std::shared_ptr<std::byte> taken(block_, block_.get() + used_);
    used_ = std::min(size_, used_ + round_up(bytes, kCacheLine));
    return taken;
}

StateMemory::StateMemory(StateArena& arena, const BufferPlan& plan, int stream) : plan_(plan) {
    const std::size_t size = plan.bytes();
    if (size == 0) return;
    const std::size_t stagger = static_cast<std::size_t>(stream) * kStagger;
    if (size >= kHugePage) {
        data_ = map_pages(size, stagger);
    } else {
        // Adjacent buffers are staggered by their own sizes, unless a size is close to a multiple of a page.
        const bool must_stagger = size % kPage < kStagger / 2 && size >= kPage;
        data_ = arena.take(size + (must_stagger ? kStagger / 2 : 0));
    }
}

StoredState::StoredState(const StoragePlan& wanted, const StoredState& former, StateArena& arena,
                         Device* device)
    : plan(wanted) {
    for (int place = 0; place < kMaxBuffers; ++place) {
        const auto& buffer = plan.at(place);
        auto& memory = buffers[static_cast<std::size_t>(place)];
        if (former.at(place).plan() == buffer) {
            memory = former.at(place);
        } else {
            memory = device != nullptr ? StateMemory(*device, buffer) : StateMemory(arena, buffer, place);
        }
    }
}

}  // namespace flashoptim

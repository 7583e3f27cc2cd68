#include "state_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace flashoptim {

namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21U;
constexpr std::size_t kStagger = 832;  // a multiple of a cache line
constexpr std::align_val_t kAlignment{64};

}  // namespace

void StateMemory::Free::operator()(std::byte* begin) const {
    if (mapped_bytes == 0) {
        ::operator delete(begin, kAlignment);
    } else {
        ::munmap(begin, mapped_bytes);
    }
}

StateMemory::StateMemory(const BufferPlan& plan, int stream) : plan_(plan) {
    const std::size_t size = plan.bytes();
    if (size == 0) return;
    if (size < kHugePage) {
        owner_ = {static_cast<std::byte*>(::operator new(size, kAlignment)), Free{0}};
        data_ = owner_.get();
        std::memset(data_, 0, size);
        return;
    }
    const std::size_t stagger = static_cast<std::size_t>(stream) * kStagger;
    const std::size_t mapped = size + stagger + kHugePage;  // what is left out for alignment is never touched
    void* begin = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (begin == MAP_FAILED) throw std::bad_alloc();
    owner_ = {static_cast<std::byte*>(begin), Free{mapped}};
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::size_t to_huge_page = (kHugePage - address % kHugePage) % kHugePage;
    data_ = owner_.get() + to_huge_page + stagger;
#if defined(MADV_HUGEPAGE)
    // Whole huge pages only: the end of the last would be memory that nobody uses. The advice may be refused.
    ::madvise(owner_.get() + to_huge_page, (size + stagger) / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

}  // namespace flashoptim

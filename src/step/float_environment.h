// The floating-point mode in which steps give the same bits everywhere: round to nearest, subnormals kept, no
// traps. A caller's thread may be in another mode (torch.set_flush_denormal, -ffast-math, fesetround), and
// every thread has its own.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace flashoptim {

/// Sets the default mode of this thread. The destructor restores the former mode.
class DefaultFloatEnvironment {
public:
#if defined(__x86_64__) || defined(_M_X64)
    DefaultFloatEnvironment() : former_(_mm_getcsr()) { _mm_setcsr(kDefault); }
    ~DefaultFloatEnvironment() { _mm_setcsr(former_); }
#elif defined(__aarch64__)
    DefaultFloatEnvironment() {
        asm volatile("mrs %0, fpcr" : "=r"(former_));
        asm volatile("msr fpcr, %0" : : "r"(kDefault));
    }
    ~DefaultFloatEnvironment() { asm volatile("msr fpcr, %0" : : "r"(former_)); }
#else
    DefaultFloatEnvironment() {
        std::fegetenv(&former_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatEnvironment() { std::fesetenv(&former_); }
#endif
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

private:
#if defined(__x86_64__) || defined(_M_X64)
    static constexpr std::uint32_t kDefault = 0x1f80U;
    std::uint32_t former_;
#elif defined(__aarch64__)
    static constexpr std::uint64_t kDefault = 0;
    std::uint64_t former_;
#else
    std::fenv_t former_;
#endif
};

}  // namespace flashoptim

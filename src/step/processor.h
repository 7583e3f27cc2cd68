// The requirements of the x86 backends: every CPUID bit that a compiler may rely on at a level of the x86-64
// psABI, and the registers that the operating system must save. This file does not know backends.
#pragma once

#include <cstdint>

namespace flashoptim {

/// A level of the x86-64 psABI. The last enumerator adds VBMI to the highest level.
enum class X86Level : std::uint8_t { kV3, kV4, kV4WithVbmi };

enum class CpuidRegister : std::uint8_t { kEbx, kEcx };

/// One bit of CPUID, and the macro that a compiler defines if it may use that feature.
struct X86Feature {
    const char* macro;
    X86Level level;
    std::uint32_t leaf;  // subleaf 0
    CpuidRegister where;
    int bit;
};

constexpr X86Feature kX86Features[] = {
    {"__SSE3__", X86Level::kV3, 1, CpuidRegister::kEcx, 0},
    {"__SSSE3__", X86Level::kV3, 1, CpuidRegister::kEcx, 9},
    {"__FMA__", X86Level::kV3, 1, CpuidRegister::kEcx, 12},
    {"__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16", X86Level::kV3, 1, CpuidRegister::kEcx, 13},
    {"__SSE4_1__", X86Level::kV3, 1, CpuidRegister::kEcx, 19},
    {"__SSE4_2__", X86Level::kV3, 1, CpuidRegister::kEcx, 20},
    {"__CRC32__", X86Level::kV3, 1, CpuidRegister::kEcx, 20},
    {"__MOVBE__", X86Level::kV3, 1, CpuidRegister::kEcx, 22},
    {"__POPCNT__", X86Level::kV3, 1, CpuidRegister::kEcx, 23},
    {"__XSAVE__", X86Level::kV3, 1, CpuidRegister::kEcx, 26},
    {"OSXSAVE", X86Level::kV3, 1, CpuidRegister::kEcx, 27},  // XGETBV may be used; has no macro
    {"__AVX__", X86Level::kV3, 1, CpuidRegister::kEcx, 28},
    {"__F16C__", X86Level::kV3, 1, CpuidRegister::kEcx, 29},
    {"__BMI__", X86Level::kV3, 7, CpuidRegister::kEbx, 3},
    {"__AVX2__", X86Level::kV3, 7, CpuidRegister::kEbx, 5},
    {"__BMI2__", X86Level::kV3, 7, CpuidRegister::kEbx, 8},
    {"__LAHF_SAHF__", X86Level::kV3, 0x80000001U, CpuidRegister::kEcx, 0},
    {"__LZCNT__", X86Level::kV3, 0x80000001U, CpuidRegister::kEcx, 5},
    {"__AVX512F__", X86Level::kV4, 7, CpuidRegister::kEbx, 16},
    {"__AVX512DQ__", X86Level::kV4, 7, CpuidRegister::kEbx, 17},
    {"__AVX512CD__", X86Level::kV4, 7, CpuidRegister::kEbx, 28},
    {"__AVX512BW__", X86Level::kV4, 7, CpuidRegister::kEbx, 30},
    {"__AVX512VL__", X86Level::kV4, 7, CpuidRegister::kEbx, 31},
    {"__AVX512VBMI__", X86Level::kV4WithVbmi, 7, CpuidRegister::kEcx, 1},
};

/// The bits of XCR0 that the operating system sets for the registers that it saves: kAvxState those of SSE
/// and AVX, kAvx512State those of AVX-512 as well.
constexpr std::uint64_t kAvxState = 0x6U, kAvx512State = 0xe6U;

struct CpuidAnswer {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

/// Access to the processor. Tests replace it by a made-up processor.
struct X86Processor {
    CpuidAnswer (*cpuid)(std::uint32_t leaf);  // subleaf 0
    std::uint64_t (*xcr0)();                   // called only if CPUID has OSXSAVE
};

/// Whether every feature of the level can be used.
inline bool reaches(const X86Processor& processor, X86Level level) {
    const auto last_leaf = processor.cpuid(0).eax, last_extended_leaf = processor.cpuid(0x80000000U).eax;
    for (const auto& feature : kX86Features) {
        if (feature.level > level) continue;
        if (feature.leaf > (feature.leaf < 0x80000000U ? last_leaf : last_extended_leaf)) return false;
        const auto answer = processor.cpuid(feature.leaf);
        const auto bits = feature.where == CpuidRegister::kEbx ? answer.ebx : answer.ecx;
        if (((bits >> static_cast<unsigned>(feature.bit)) & 1U) == 0) return false;
    }
    const auto state = level == X86Level::kV3 ? kAvxState : kAvx512State;
    return (processor.xcr0() & state) == state;
}

}  // namespace flashoptim

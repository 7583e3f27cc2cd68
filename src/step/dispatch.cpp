// Chooses the backend: the one that the caller or the environment names, else the fastest that the processor
// runs.
#include "step/dispatch.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>

#include "flashoptim/error.h"

#if defined(FLASHOPTIM_X86)
#include <cpuid.h>

#include "step/processor.h"
#endif

namespace flashoptim {

namespace {

// Sorted by speed, the fastest last.
constexpr std::array kAllBackends = {Backend::kScalar, Backend::kPortable, Backend::kNeon,
                                     Backend::kAvx2,   Backend::kAvx512,   Backend::kAvx512Vbmi};

#if defined(FLASHOPTIM_X86)
// CPUID is read directly, because __builtin_cpu_supports of some compilers does not know every bit.
CpuidAnswer cpuid(std::uint32_t leaf) {
    CpuidAnswer answer;
    __cpuid_count(leaf, 0, answer.eax, answer.ebx, answer.ecx, answer.edx);
    return answer;
}
std::uint64_t xcr0() {
    std::uint32_t low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32U | low;
}
bool reaches_here(X86Level level) { return reaches({&cpuid, &xcr0}, level); }
#endif

bool runs_here(Backend backend) {
    switch (backend) {
        case Backend::kScalar:
        case Backend::kPortable:
            return true;
#if defined(FLASHOPTIM_X86)
        // Each backend needs the psABI level that its file is compiled for. The answer is cached: CPUID is
        // slow under a hypervisor and never changes.
        case Backend::kAvx2: {
            static const bool kRuns = reaches_here(X86Level::kV3);
            return kRuns;
        }
        case Backend::kAvx512: {
            static const bool kRuns = reaches_here(X86Level::kV4);
            return kRuns;
        }
        case Backend::kAvx512Vbmi: {
            static const bool kRuns = reaches_here(X86Level::kV4WithVbmi);
            return kRuns;
        }
#endif
#if defined(FLASHOPTIM_NEON)
        case Backend::kNeon:
            return true;
#endif
        default:
            return false;
    }
}

std::string names_of(const std::vector<Backend>& backends) {
    std::string names;
    for (const auto backend : backends) {
        if (!names.empty()) names += ", ";
        names += name_of(backend);
    }
    return names;
}

Backend automatic_backend() {
    const auto available = available_backends();
    const char* wanted = std::getenv("FLASHOPTIM_BACKEND");
    if (wanted == nullptr || *wanted == '\0') return available.back();
    for (const auto backend : available) {
        if (name_of(backend) == wanted) return backend;
    }
    throw InvalidArgument("FLASHOPTIM_BACKEND=" + std::string(wanted) +
                          " is not a backend of this build on this processor: choose one of " +
                          names_of(available));
}

/// The automatic backend, determined once. A bad name in FLASHOPTIM_BACKEND makes every call with kAutomatic
/// fail; calls that name a backend are not affected.
Backend automatic_choice() {
    static const Backend kChoice = automatic_backend();
    return kChoice;
}

}  // namespace

std::string_view name_of(Backend backend) {
    switch (backend) {
        case Backend::kAutomatic:
            return "automatic";
        case Backend::kScalar:
            return "scalar";
        case Backend::kPortable:
            return "portable";
        case Backend::kNeon:
            return "neon";
        case Backend::kAvx2:
            return "avx2";
        case Backend::kAvx512:
            return "avx512";
        case Backend::kAvx512Vbmi:
            return "avx512-vbmi";
    }
    return "unknown";
}

std::vector<Backend> available_backends() {
    std::vector<Backend> available;
    std::copy_if(kAllBackends.begin(), kAllBackends.end(), std::back_inserter(available), runs_here);
    return available;
}

const BackendKernels& backend_kernels(Backend backend) {
    static const BackendKernels kScalar = scalar_backend(), kPortable = portable_backend();
    const Backend chosen = backend == Backend::kAutomatic ? automatic_choice() : backend;
    if (!runs_here(chosen)) {
        throw InvalidArgument("backend " + std::string(name_of(chosen)) +
                              " is not available on this processor: choose one of " +
                              names_of(available_backends()));
    }
    switch (chosen) {
        case Backend::kScalar:
            return kScalar;
#if defined(FLASHOPTIM_X86)
        case Backend::kAvx2: {
            static const BackendKernels kAvx2 = avx2_backend();
            return kAvx2;
        }
        case Backend::kAvx512: {
            static const BackendKernels kAvx512 = avx512_backend();
            return kAvx512;
        }
        case Backend::kAvx512Vbmi: {
            static const BackendKernels kAvx512Vbmi = avx512_vbmi_backend();
            return kAvx512Vbmi;
        }
#endif
#if defined(FLASHOPTIM_NEON)
        case Backend::kNeon: {
            static const BackendKernels kNeon = neon_backend();
            return kNeon;
        }
#endif
        default:
            return kPortable;
    }
}

}  // namespace flashoptim

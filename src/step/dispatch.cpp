// Chooses the backend: by the caller, by the environment, or by what the processor can do.
#include "step/dispatch.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>

#include "flashoptim/error.h"

namespace flashoptim {

namespace {

// The fastest last.
constexpr std::array kAllBackends = {Backend::kScalar, Backend::kPortable, Backend::kNeon,
                                     Backend::kAvx2,   Backend::kAvx512,   Backend::kAvx512Vbmi};

bool runs_here(Backend backend) {
    switch (backend) {
        case Backend::kScalar:
        case Backend::kPortable:
            return true;
#if defined(FLASHOPTIM_X86)
        // What the compiler may use at x86-64-v3 and x86-64-v4 (psABI), which the files are compiled for.
        case Backend::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
        case Backend::kAvx512:
            return runs_here(Backend::kAvx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        case Backend::kAvx512Vbmi:
            return runs_here(Backend::kAvx512) && __builtin_cpu_supports("avx512vbmi");
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
    static const Backend kAutomaticChoice = automatic_backend();
    static const BackendKernels kScalar = scalar_backend(), kPortable = portable_backend();
    const Backend chosen = backend == Backend::kAutomatic ? kAutomaticChoice : backend;
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

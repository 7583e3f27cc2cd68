// Chooses the backend: by the caller, by the environment, or by what the processor can do.
#include "step/dispatch.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>

#include "flashoptim/error.h"

namespace flashoptim {

namespace {

constexpr std::array kAllBackends = {Backend::kScalar, Backend::kPortable, Backend::kX86V3, Backend::kX86V4};

bool runs_here(Backend backend) {
    switch (backend) {
        case Backend::kScalar:
        case Backend::kPortable:
            return true;
#if defined(FLASHOPTIM_X86_LEVELS)
        // What the compiler may use at these levels (x86-64 psABI).
        case Backend::kX86V3:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
        case Backend::kX86V4:
            return runs_here(Backend::kX86V3) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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
        case Backend::kX86V3:
            return "x86-64-v3";
        case Backend::kX86V4:
            return "x86-64-v4";
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
#if defined(FLASHOPTIM_X86_LEVELS)
        case Backend::kX86V3: {
            static const BackendKernels kV3 = x86_v3_backend();
            return kV3;
        }
        case Backend::kX86V4: {
            static const BackendKernels kV4 = x86_v4_backend();
            return kV4;
        }
#endif
        default:
            return kPortable;
    }
}

}  // namespace flashoptim

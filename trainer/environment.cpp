// Checks FLASHOPTIM_BACKEND and OMP_NUM_THREADS.
#include "trainer/environment.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/step.h"
#include "flashoptim/system/control_groups.h"
#include "flashoptim/system/cpu_count.h"
#include "trainer/exact_number.h"

namespace flashoptim::trainer {
namespace {

// Accepts "4" or, with the threads of nested levels, "4,2". For any other text OpenMP would print a warning
// and use its default.
void check_omp_num_threads() {
    const char* const text = std::getenv("OMP_NUM_THREADS");
    if (text == nullptr || *text == '\0') return;
    std::string list = text;
    list.erase(std::remove(list.begin(), list.end(), ' '), list.end());
    const auto numbers = split_text(list, ",");
    const auto allowed = [](std::string_view number) {
        const auto threads = exact_whole_number(number);
        return threads && *threads >= 1 && *threads <= kMostThreads;
    };
    if (!numbers.empty() && std::all_of(numbers.begin(), numbers.end(), allowed)) return;
    throw InvalidArgument("OMP_NUM_THREADS is '" + std::string(text) +
                          "'; set it to a whole number from 1 to " + std::to_string(kMostThreads) +
                          ", unset it, or give the number of threads of the run");
}

}  // namespace

void check_backend() {
    ThreadPool alone(1);
    static_cast<void>(grad_norm({}, alone));  // reads the variable
}

void check_environment(int threads) {
    check_backend();
    if (threads == 0) check_omp_num_threads();
}

}  // namespace flashoptim::trainer

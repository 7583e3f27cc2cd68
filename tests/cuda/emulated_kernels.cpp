// Every kernel for the emulation. The same bits must come from it as from the scalar backend.
#include "emulation.h"

namespace flashoptim::cuda {

Launchers emulated_launchers(Rule rule, bool has_first, const StoragePlan& plan) {
    return visit_kernel_types(rule, has_first, plan, []<class R, class M, class W>() {
        return Launchers{&emulate_step<R, M, W>, &emulate_count<CountingRule<W>, W>};
    });
}

}  // namespace flashoptim::cuda

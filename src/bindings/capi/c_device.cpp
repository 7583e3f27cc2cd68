#include "c_device.h"

#include "flashoptim/error.h"

#if defined(FLASHOPTIM_WITH_CUDA)
#include "flashoptim/cuda_device.h"
#endif

namespace flashoptim::capi {

void set_cuda_stream(Device* device, void* stream) {
    if (device == nullptr) {
        throw InvalidArgument(
            "the optimizer is not on a device: make it with place FLASHOPTIM_CUDA to give it a stream");
    }
#if defined(FLASHOPTIM_WITH_CUDA)
    static_cast<cuda::CudaDevice*>(device)->set_stream(stream);
#else
    (void)stream;  // unused: a build without CUDA makes no device
#endif
}

#if defined(FLASHOPTIM_WITH_CUDA)
std::int32_t cuda_device_count() noexcept { return cuda::device_count(); }
std::shared_ptr<Device> make_cuda_device(std::int32_t device, void* stream) {
    return std::make_shared<cuda::CudaDevice>(device, stream);
}
#else
std::int32_t cuda_device_count() noexcept { return 0; }
std::shared_ptr<Device> make_cuda_device(std::int32_t /*device*/, void* /*stream*/) {
    throw InvalidArgument(
        "place is FLASHOPTIM_CUDA and this build has no CUDA backend: configure it where nvcc of CUDA 12.4 "
        "or "
        "later is, with -DFLASHOPTIM_CUDA=ON");
}
#endif

}  // namespace flashoptim::capi

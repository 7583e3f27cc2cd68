// The devices beside the CPU that parameters may be on. Nothing else in this folder knows
// torch's devices or the backend's.
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <optional>
#include <string>

#include "flashoptim/device.h"

namespace flashoptim::libtorch {

/// What steps a list on a device; a tensor is known by its TensorImpl.
using DeviceList = std::optional<CountingStepper<const void*>>;

/// Whether tensors there are stepped by a backend of devices, and not by the CPU's.
bool is_on_device(const c10::Device& device);
/// Nothing, or why parameters cannot be there and what to do.
std::optional<std::string> obstacle_of(const c10::Device& device);
/// For a list there. It works on torch's stream that is current when it is called.
std::unique_ptr<DeviceStepper> make_stepper(const c10::Device& device);

}  // namespace flashoptim::libtorch

// The devices other than the CPU that parameters may be on. Only this file knows the devices of torch and of
// the backend.
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <optional>
#include <string>

#include "flashoptim/device.h"

namespace flashoptim::libtorch {

/// Steps a list of tensors on a device. A tensor is identified by its TensorImpl.
using DeviceList = std::optional<CountingStepper<const void*>>;

/// Whether a device backend, not the CPU, steps the tensors on this device.
bool is_on_device(const c10::Device& device);
/// Why parameters cannot be on this device, and the remedy. Empty if they can.
std::optional<std::string> obstacle_of(const c10::Device& device);
/// Makes the stepper of a list on this device. Each call runs on torch's current stream.
std::unique_ptr<DeviceStepper> make_stepper(const c10::Device& device);

}  // namespace flashoptim::libtorch

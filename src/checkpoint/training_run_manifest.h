// The description that early versions of `flashoptim train` wrote in place of an optimizer's (kind "flashoptim
// training run"). Read, never written.
#pragma once

#include "optimizer_checkpoint.h"
#include "optimizer_manifest.h"

namespace flashoptim::checkpoint {

/// Whether the document is one.
bool is_training_run(const JsonValue& document);

/// What it says, with shapes, dtypes and groups, which it does not have, from `optimizer`. Its tensors lie in
/// row order. Throws FormatError that names the folder and the field.
OptimizerManifest training_run_manifest(const JsonValue& document, const Checkpoint& from,
                                        const OptimizerToLoad& optimizer);

}  // namespace flashoptim::checkpoint

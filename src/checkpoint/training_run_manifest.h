// metadata.json as early versions of `flashoptim train` wrote it, of the kind "flashoptim training run". It
// is read and never written.
#pragma once

#include "optimizer_checkpoint.h"
#include "optimizer_manifest.h"

namespace flashoptim::checkpoint {

/// Whether the document is of that kind.
bool is_training_run(const JsonValue& document);

/// Converts the document. Shapes, dtypes and groups, which it lacks, are those of `optimizer`. Its tensors
/// are row-major. Throws a FormatError that names the folder and the field.
OptimizerManifest training_run_manifest(const JsonValue& document, const Checkpoint& from,
                                        const OptimizerToLoad& optimizer);

}  // namespace flashoptim::checkpoint

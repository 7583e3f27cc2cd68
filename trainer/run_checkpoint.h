// A training run in a checkpoint folder: weights, optimizer state and the step, and what must be the same to
// go on from there. Knows no loop; where the folders of a run lie is in run_folder.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "flashoptim/libtorch.h"
#include "trainer/data/identity.h"
#include "trainer/models/model.h"
#include "trainer/progress.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {

/// Options of a run as text, written into its checkpoints.
struct RunFields {
    using Fields = std::vector<std::pair<std::string, std::string>>;
    Fields model;      ///< must be equal to resume
    Fields optimizer;  ///< must be equal to resume
    Fields stream;     ///< which tokens each step sees; must be equal to resume
    Fields other;      ///< may differ: the new run's values hold, and a notice says so
    DataIdentity data;
    bool allow_other_data = false;  ///< data may differ, too, and a notice says so
};

/// `options` with its vocabulary resolved, over this data.
RunFields run_fields(const TrainOptions& options, DataIdentity data, int threads);

/// Writes the state after `step`: a checkpoint of the optimizer with the model's names, and the step and
/// `fields` as its application's JSON. Throws IoError; then no checkpoint has changed.
CheckpointRecord save_run(const std::filesystem::path& folder, std::int64_t step, const RunFields& fields,
                          const Model& model, libtorch::FlashOptimizer& optimizer);

/// Reads the state back and returns its step. `notice` receives a line for each field of RunFields::other
/// that differs, and one for a checkpoint of an older version, which does not say what its data was. Throws
/// FormatError that names the first field of model, optimizer or stream that differs, the file of the data
/// that was changed, or what is damaged; IoError.
std::int64_t load_run(const std::filesystem::path& folder, const RunFields& fields, Model& model,
                      libtorch::FlashOptimizer& optimizer,
                      const std::function<void(const std::string&)>& notice);

}  // namespace flashoptim::trainer

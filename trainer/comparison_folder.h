// The `out` folder of a comparison: the comparison's files, and a folder for each run. Each run owns the
// content of its folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/owned_folder.h"

namespace flashoptim::trainer {

class ComparisonFolder {
public:
    /// Locks the folder for runs of `steps` steps in folders with these names. Throws InvalidArgument if a
    /// comparison or one of the runs exists and `overwrite` is false, and IoError if the folder is in use,
    /// cannot be written, or contains a foreign file with a name that is needed. Then nothing has changed.
    /// The files of an old comparison are moved aside until the first new run has replaced an old one. If
    /// none does, they are moved back.
    ComparisonFolder(const std::filesystem::path& out, const std::vector<std::string>& runs,
                     std::int64_t steps, bool overwrite, const Notice& notice);

    /// Records that the comparison ended well. Throws IoError.
    void end();

private:
    OwnedFolder folder_;
};

}  // namespace flashoptim::trainer

// The `out` folder of a comparison: its own files, and a folder for each of its runs, which owns what is in
// it by itself.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/owned_folder.h"

namespace flashoptim::trainer {

class ComparisonFolder {
public:
    /// Takes the folder for this process alone, for runs of `steps` steps in folders of these names. Throws
    /// InvalidArgument that says what is there if a comparison or one of the runs is and `overwrite` does not
    /// allow to replace it; IoError (in use, something foreign has a name that is needed, cannot be written).
    /// Nothing has changed then. An old comparison's files are moved aside until the first new run has taken
    /// the place of an old one; where none does, they are put back.
    ComparisonFolder(const std::filesystem::path& out, const std::vector<std::string>& runs,
                     std::int64_t steps, bool overwrite, const Notice& notice);

    /// The comparison ended well. Throws IoError.
    void end();

private:
    OwnedFolder folder_;
};

}  // namespace flashoptim::trainer

// An open safetensors file, shared by its reader and the checkpoint that opens it. No parsing and no writing
// here.
#pragma once

#include <memory>

#include "flashoptim/checkpoint.h"
#include "flashoptim/system/file_io.h"
#include "safetensors_header.h"

namespace flashoptim::checkpoint {

struct SafetensorsFile::State {
    explicit State(std::shared_ptr<const InputFile> opened);

    std::shared_ptr<const InputFile> file;
    SafetensorsHeader header;
};

}  // namespace flashoptim::checkpoint

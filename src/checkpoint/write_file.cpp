// The public functions that write a single file: any bytes, or tensors.
#include <fcntl.h>

#include <cerrno>
#include <functional>
#include <optional>

#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/descriptor_path.h"
#include "flashoptim/system/message.h"
#include "safetensors_writer.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

// A device or pipe has no content that could be replaced atomically.
bool is_stream(const fs::path& path) {
    std::error_code ignored;
    const fs::file_type type = fs::status(path, ignored).type();
    return type == fs::file_type::character || type == fs::file_type::fifo || type == fs::file_type::socket;
}

void write_stream(const fs::path& path, std::optional<int> opened,
                  const std::function<void(OutputFile&)>& write_content) {
    FileDescriptor descriptor(opened ? ::fcntl(*opened, F_DUPFD_CLOEXEC, 0)
                                     : ::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!descriptor) throw_io_error("open", path, errno);
    OutputFile output(std::move(descriptor), path);
    write_content(output);
}

void write_complete(const fs::path& path, std::uint64_t byte_count,
                    const std::function<void(OutputFile&)>& write_content) {
    try {
        const auto opened = descriptor_named(path);
        if (opened || is_stream(path)) return write_stream(path, opened, write_content);
        std::error_code ignored;
        if (fs::is_block_file(path, ignored)) {
            throw IoError("cannot write " + path_label(path) + ": it is a disk; give the path of a file");
        }
        TemporaryFile file(prepare_target(path));
        write_content(file.output());
        file.replace_target();
    } catch (const NoSpaceError&) {
        throw_no_space(path, byte_count);
    }
}

}  // namespace

void write_file(const fs::path& file, std::string_view content) {
    write_complete(file, content.size(), [content](OutputFile& output) { output.write(content); });
}

std::uint64_t write_safetensors(const fs::path& file, std::span<const TensorData> tensors,
                                const Metadata& metadata) {
    const SafetensorsLayout layout = plan_safetensors(tensors, metadata, file);
    write_complete(file, layout.file_bytes,
                   [&layout](OutputFile& output) { write_safetensors(output, layout); });
    return layout.file_bytes;
}

}  // namespace flashoptim::checkpoint

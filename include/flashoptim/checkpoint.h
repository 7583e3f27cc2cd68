// Tensors in files: safetensors files, and checkpoint folders that a killed run or a full disk cannot break.
// At the end: saving and loading an optimizer of the core in them. Any framework's tensor type never stands here.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/error.h"

namespace flashoptim {
class Optimizer;
}

namespace flashoptim::checkpoint {

/// Element type of a tensor in a safetensors file, in the order in which the format's own writer ranks them.
enum class StorageType : std::uint8_t {
    kBool,
    kUInt8,
    kInt8,
    kInt16,
    kUInt16,
    kFloat16,
    kBFloat16,
    kInt32,
    kUInt32,
    kFloat32,
    kFloat64,
    kInt64,
    kUInt64,
};

/// Bytes of one element.
std::size_t element_size(StorageType type);

/// The name that stands in the file: "F32", "BF16", "U8", ...
std::string_view storage_type_name(StorageType type);

/// Free key/value text in the header of a safetensors file (`__metadata__`).
using Metadata = std::map<std::string, std::string>;

/// One tensor to be written. `bytes` is borrowed until the writing function returns: the elements in row
/// order, little-endian. An empty shape is a scalar; a dimension of 0 makes a tensor without bytes.
struct TensorData {
    std::string name;
    StorageType dtype = StorageType::kFloat32;
    std::vector<std::int64_t> shape;
    std::span<const std::byte> bytes;
};

/// One tensor of a file that was opened.
struct TensorInfo {
    std::string name;
    StorageType dtype = StorageType::kFloat32;
    std::vector<std::int64_t> shape;
    std::uint64_t offset = 0;      ///< of the first byte, from the start of the file
    std::uint64_t byte_count = 0;  ///< product of `shape` times the element size
};

/// A safetensors file opened for reading. Opening checks the whole header against the length of the file; the
/// tensors are read when asked for, straight into the caller's memory (nothing is mapped, so a file shortened
/// later is an error and not a crash). Copies share the open file. Thread-safe: any number of threads may
/// read at once.
class SafetensorsFile {
public:
    /// Throws IoError if the file cannot be read and FormatError if it is not a complete, valid safetensors
    /// file.
    static SafetensorsFile open(const std::filesystem::path& file);

    const std::filesystem::path& path() const;
    const Metadata& metadata() const;
    std::uint64_t byte_count() const;  ///< length of the file

    /// All tensors, in the order in which they lie in the file.
    std::span<const TensorInfo> tensors() const;

    /// The tensor of that name, or null.
    const TensorInfo* find(std::string_view name) const;

    /// The tensor of that name. Throws FormatError if there is none.
    const TensorInfo& tensor(std::string_view name) const;

    /// The tensor of that name with that dtype and shape. Throws FormatError that says what the file has
    /// instead.
    const TensorInfo& tensor(std::string_view name, StorageType dtype,
                             std::span<const std::int64_t> shape) const;

    /// Reads a tensor of this file into `out`, which has exactly `tensor.byte_count` bytes (else
    /// InvalidArgument). Throws IoError.
    void read(const TensorInfo& tensor, std::span<std::byte> out) const;

    /// Reads a tensor of this file into new memory. Throws IoError.
    std::vector<std::byte> read(const TensorInfo& tensor) const;

private:
    friend class Checkpoint;
    struct State;
    explicit SafetensorsFile(std::shared_ptr<const State> state);
    std::shared_ptr<const State> state_;
};

/// Writes `tensors` as one safetensors file and returns its length in bytes. Tensors are ordered by element
/// type, then name, and lie without holes, each aligned to its element size; no second copy of them is made.
/// The file appears under its name complete or not at all. Throws InvalidArgument (bad name, shape or byte
/// count) before the disk is touched, and IoError.
std::uint64_t write_safetensors(const std::filesystem::path& file, std::span<const TensorData> tensors,
                                const Metadata& metadata = {});

/// Replaces `file` by `content`, or makes it: whoever looks sees the old content or the new one, also after a
/// kill or on a full disk. Its permissions stay. Missing folders above it are made. A character device or pipe, and whatever this
/// process has open that the path is another name of (/dev/stdout, /dev/fd/3), is written to directly, where it stands. Throws
/// IoError.
void write_file(const std::filesystem::path& file, std::string_view content);

/// One tensor file of a checkpoint: `name` "weights" becomes weights.safetensors.
struct TensorFile {
    std::string name;
    std::vector<TensorData> tensors;
    Metadata metadata = {};
};

/// Writes a checkpoint folder and returns its bytes on disk. `metadata_json` is the caller's own JSON
/// document, kept to the byte. Everything is first written beside `folder` under a temporary name and synced
/// to the disk, then takes its place in one rename: a kill, a full disk or a power cut at any moment leaves
/// the old checkpoint or the new one, complete, to be opened under `folder`. What killed saves of this user left beside it
/// is removed, where it is proved to be that: nothing else ever is. A folder is replaced only if it is empty or holds the files of
/// a checkpoint and nothing else, also nothing that came while this was writing. Its permissions stay. Missing folders above it are
/// made. Throws InvalidArgument before the disk is touched, and IoError, after which the old checkpoint is as
/// it was.
std::uint64_t write(const std::filesystem::path& folder, std::string_view metadata_json,
                    std::span<const TensorFile> files);

/// Whether there is something at `folder`, or a checkpoint that a save killed at the wrong moment had moved aside from there: whether
/// Checkpoint::open has something to open. Changes nothing. Throws IoError.
bool exists(const std::filesystem::path& folder);

/// Removes the checkpoint at `folder`; nothing happens if there is none. It is gone in one step, as far as readers can tell; only
/// on a full disk its files go one by one.
/// Throws IoError if there is a link, or a folder that is not empty and holds anything but the files of a checkpoint, or if it
/// cannot be removed; it is then as it was, or may be removed again.
void remove(const std::filesystem::path& folder);

/// Whether a tensor file's checksum is compared when it is opened (one more pass over the file) or trusted.
enum class Verify : std::uint8_t { kChecksum, kNothing };

/// A checkpoint folder opened for reading. It stays readable and unchanged when a writer replaces the folder
/// meanwhile. Copies share the open files; thread-safe.
class Checkpoint {
public:
    /// Newest version of the folder's format, which `write` writes. `open` reads this one and all earlier
    /// ones.
    static constexpr int kVersion = 1;

    /// Opens every file of the checkpoint and compares its length. Reading changes nothing on the disk: a checkpoint that a save killed
    /// at the wrong moment had moved aside is opened where it lies. Throws IoError if there is none at
    /// `folder` or it cannot be read; FormatError if it is foreign, of a newer version, truncated or
    /// incomplete.
    static Checkpoint open(const std::filesystem::path& folder);

    const std::filesystem::path& folder() const;
    const std::string& metadata_json() const;
    std::uint64_t byte_count() const;  ///< of all files together

    /// Names of the tensor files ("weights", ...), sorted.
    std::vector<std::string> file_names() const;
    bool contains(std::string_view name) const;

    /// The tensor file of that name. Throws FormatError if the checkpoint has none, its checksum differs or
    /// it is malformed; IoError.
    SafetensorsFile file(std::string_view name, Verify verify = Verify::kChecksum) const;

private:
    struct State;
    explicit Checkpoint(std::shared_ptr<const State> state);
    std::shared_ptr<const State> state_;
};

}  // namespace flashoptim::checkpoint

namespace flashoptim {

struct SaveOptions {
    bool weights = true;  ///< false: state only, for programs that save the weights themselves
};

/// Saves the optimizer as a checkpoint folder (checkpoint::write: complete or not at all) and returns its bytes on disk: state
/// and weights exactly as they lie, step counts, hyperparameters of every group. Not saved: gradients, the gradient factor,
/// counters of bad elements and OptimizerOptions. A run that goes on from it computes the same bits as one that never stopped.
/// Throws InvalidArgument for two parameters of one name, and IoError.
std::uint64_t save_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                             const SaveOptions& options = {});

struct LoadOptions {
    /// Weights are loaded too, if the checkpoint has them. Otherwise those in memory have to be the ones that were saved.
    bool weights = true;
    /// State in another format, with other master bits or in another stride order is decoded and encoded again to nearest.
    /// false: that is an error.
    bool convert = true;
};

struct LoadReport {
    bool weights = false;                ///< whether weights were loaded
    std::vector<std::string> converted;  ///< parameters whose state was brought into another format or order
};

/// Loads what save_optimizer wrote into an optimizer of the same rule with the same groups and, in any order, the same parameters
/// by name, shape, dtype and shard. Hyperparameters become those of the checkpoint.
///
/// Where the format of a correction changes (native or paper, master bits), the full-precision weight is split anew and the weight in
/// memory is written too, whatever LoadOptions::weights says; it may move by one unit of its last place.
///
/// Everything is read and checked first, which takes the memory of a second copy of the state. Throws FormatError that names the
/// parameter and the remedy, InvalidArgument for two parameters of one name, and IoError; the optimizer is then as it was.
LoadReport load_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                          const LoadOptions& options = {});

}  // namespace flashoptim

#endif

// Tensors in files: safetensors files, and checkpoint folders that a killed process or a full disk cannot
// break. At the end: saving and loading an optimizer of the core. No framework's tensor type appears here.
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

/// Element type of a tensor in a safetensors file, in the order in which the format's own writer sorts them.
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

/// The name of a type in the file: "F32", "BF16", "U8", ...
std::string_view storage_type_name(StorageType type);

/// Free key/value text in the header of a safetensors file (`__metadata__`).
using Metadata = std::map<std::string, std::string>;

/// One tensor to be written.
struct TensorData {
    std::string name;                           ///< unique in its file
    StorageType dtype = StorageType::kFloat32;  ///< element type
    std::vector<std::int64_t> shape;            ///< empty: a scalar; a dimension of 0: no elements
    std::span<const std::byte>
        bytes;  ///< elements, row-major, little-endian; borrowed until the write returns
};

/// One tensor of a file that was opened.
struct TensorInfo {
    std::string name;                           ///< unique in its file
    StorageType dtype = StorageType::kFloat32;  ///< element type
    std::vector<std::int64_t> shape;            ///< empty: a scalar; a dimension of 0: no elements
    std::uint64_t offset = 0;                   ///< position of the first byte in the file
    std::uint64_t byte_count = 0;               ///< product of `shape` times the element size
};

/// A safetensors file that is open for reading.
///
/// Opening checks the whole header against the length of the file. Tensors are read on request, directly into
/// the caller's memory. Nothing is mapped, so a file that is shortened later is an error and not a crash.
/// Copies share the open file. Thread-safe: any number of threads may read at once.
class SafetensorsFile {
public:
    /// Opens a file.
    /// @throws IoError if the file cannot be read.
    /// @throws FormatError if it is not a complete, valid safetensors file.
    static SafetensorsFile open(const std::filesystem::path& file);

    /// The path that was opened.
    const std::filesystem::path& path() const;
    /// The key/value text of the header.
    const Metadata& metadata() const;
    /// Length of the file.
    std::uint64_t byte_count() const;

    /// All tensors, in the order of the file.
    std::span<const TensorInfo> tensors() const;

    /// The tensor of that name, or null.
    const TensorInfo* find(std::string_view name) const;

    /// The tensor of that name.
    /// @throws FormatError if there is none.
    const TensorInfo& tensor(std::string_view name) const;

    /// The tensor of that name with that dtype and shape.
    /// @throws FormatError says what the file has instead.
    const TensorInfo& tensor(std::string_view name, StorageType dtype,
                             std::span<const std::int64_t> shape) const;

    /// Reads a tensor of this file into `out`.
    /// @throws InvalidArgument if `out` does not have exactly `tensor.byte_count` bytes.
    /// @throws IoError if the file cannot be read.
    void read(const TensorInfo& tensor, std::span<std::byte> out) const;

    /// Reads a tensor of this file into new memory.
    /// @throws IoError if the file cannot be read.
    std::vector<std::byte> read(const TensorInfo& tensor) const;

private:
    friend class Checkpoint;
    struct State;
    explicit SafetensorsFile(std::shared_ptr<const State> state);
    std::shared_ptr<const State> state_;
};

/// Writes `tensors` as one safetensors file. The file appears under its name complete or not at all. Tensors
/// are sorted by element type, then by name, and lie without holes, each aligned to its element size. No
/// second copy of them is made.
/// @return the length of the file in bytes
/// @throws InvalidArgument for a bad name, shape or byte count, before the disk is touched.
/// @throws IoError if the file cannot be written.
std::uint64_t write_safetensors(const std::filesystem::path& file, std::span<const TensorData> tensors,
                                const Metadata& metadata = {});

/// Makes or replaces `file`. A reader sees the old content or the new one, even after a kill or on a full
/// disk. The file keeps its permissions. Missing folders above it are made. A character device, a pipe, or a
/// path that is another name of a file that this process has open (/dev/stdout, /dev/fd/3) is written to
/// directly, at its current position.
/// @throws IoError if the file cannot be written.
void write_file(const std::filesystem::path& file, std::string_view content);

/// One tensor file of a checkpoint.
struct TensorFile {
    std::string name;                 ///< "weights" becomes weights.safetensors
    std::vector<TensorData> tensors;  ///< its tensors
    Metadata metadata = {};           ///< key/value text of its header
};

/// Writes a checkpoint folder.
///
/// Everything is written beside `folder` under a temporary name and synced to the disk. One rename then puts
/// it in place. After a kill, a full disk or a power cut at any moment, `folder` opens as the old checkpoint
/// or the new one, complete.
///
/// A folder is replaced only if it is empty or holds the files of a checkpoint and nothing else; this is
/// checked again after writing. The folder keeps its permissions. Missing folders above it are made.
/// Leftovers of killed saves of the same user are removed, and nothing that is not proved to be one.
/// @param folder        where the checkpoint is to lie
/// @param metadata_json the caller's own JSON document, kept byte for byte
/// @param files         the tensor files
/// @return its bytes on disk
/// @throws InvalidArgument before the disk is touched.
/// @throws IoError if it cannot be written. The old checkpoint is as it was.
std::uint64_t write(const std::filesystem::path& folder, std::string_view metadata_json,
                    std::span<const TensorFile> files);

/// Whether Checkpoint::open() has something to open: anything at `folder`, or a checkpoint that a killed save
/// had moved aside. Changes nothing.
/// @throws IoError if the folder cannot be read.
bool exists(const std::filesystem::path& folder);

/// Removes the checkpoint at `folder`; does nothing if there is none. For readers it disappears at once. On a
/// full disk its files disappear one by one.
/// @throws IoError if `folder` is a link, holds anything but the files of a checkpoint, or cannot be removed.
///         It is then as it was, or may be removed again.
void remove(const std::filesystem::path& folder);

/// Whether opening a tensor file verifies its checksum, which reads the file once more.
enum class Verify : std::uint8_t { kChecksum, kNothing };

/// A checkpoint folder that is open for reading. It stays readable and unchanged when a writer replaces the
/// folder. Copies share the open files. Thread-safe.
class Checkpoint {
public:
    /// Newest version of the folder's layout. write() writes it; open() reads it and all earlier ones.
    static constexpr int kVersion = 1;

    /// Opens every file of the checkpoint and compares its length. Changes nothing on the disk: a checkpoint
    /// that a killed save had moved aside is opened there.
    /// @throws IoError if there is none at `folder` or it cannot be read.
    /// @throws FormatError if it is not a checkpoint, of a newer version, truncated or incomplete.
    static Checkpoint open(const std::filesystem::path& folder);

    /// The path that was opened.
    const std::filesystem::path& folder() const;
    /// The JSON document that write() was given.
    const std::string& metadata_json() const;
    /// Length of all files together.
    std::uint64_t byte_count() const;

    /// Names of the tensor files ("weights", ...), sorted.
    std::vector<std::string> file_names() const;
    /// Whether there is a tensor file of that name.
    bool contains(std::string_view name) const;

    /// Opens the tensor file of that name.
    /// @throws FormatError if there is none, its checksum differs or it is malformed.
    /// @throws IoError if it cannot be read.
    SafetensorsFile file(std::string_view name, Verify verify = Verify::kChecksum) const;

private:
    struct State;
    explicit Checkpoint(std::shared_ptr<const State> state);
    std::shared_ptr<const State> state_;
};

}  // namespace flashoptim::checkpoint

namespace flashoptim {

/// What save_optimizer() saves.
struct SaveOptions {
    bool weights = true;  ///< false: state only, for programs that save the weights themselves
    /// A JSON object of the caller's own, for example the step of a training run. It is kept under the key
    /// "application" of Checkpoint::metadata_json(). Empty: none.
    std::string application_json = {};
};

/// Saves an optimizer as a checkpoint folder, complete or not at all (checkpoint::write). Saved are weights
/// and state byte for byte, step counts, counts of bad elements, and the hyperparameters of every group. Not
/// saved are gradients, the gradient factor and OptimizerOptions. A run that continues from it computes the
/// same bits as one that never stopped. LibTorch's optimizers write and read the same folder (libtorch.h).
/// @return its bytes on disk
/// @throws InvalidArgument for two parameters of one name, or an application_json that is no JSON object.
/// @throws IoError if it cannot be written.
std::uint64_t save_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                             const SaveOptions& options = {});

/// What load_optimizer() loads.
struct LoadOptions {
    /// Also loads the weights if the checkpoint has them. Otherwise the weights in memory must be those that
    /// were saved.
    bool weights = true;
    /// Decodes state of another format, other master bits or another stride order and encodes it again, to
    /// nearest. false: such state is an error.
    bool convert = true;
    /// Also loads the hyperparameters of every group. false: the optimizer keeps its own.
    bool hyperparameters = true;
};

/// What load_optimizer() did.
struct LoadReport {
    bool weights = false;                ///< whether weights were loaded
    std::vector<std::string> converted;  ///< parameters whose state was converted
    /// Whether hyperparameters were loaded. Early checkpoints of `flashoptim train` have none.
    bool hyperparameters = false;
};

/// Loads a checkpoint that save_optimizer() of any binding or `flashoptim train` wrote. The optimizer must
/// have the same rule, the same number of groups, and the same parameters by name, shape, dtype and shard, in
/// any order. Its hyperparameters become those of the checkpoint.
///
/// If the format of a correction changes (native or paper, master bits), the master weight is split again and
/// the stored weight is written too, whatever LoadOptions::weights says. It may move by one unit in the last
/// place.
///
/// Everything is read and checked before anything changes, which takes the memory of a second copy of the
/// state.
/// @throws FormatError names the parameter and the remedy. The optimizer is as it was.
/// @throws InvalidArgument for two parameters of one name. The optimizer is as it was.
/// @throws IoError if the checkpoint cannot be read. The optimizer is as it was.
LoadReport load_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                          const LoadOptions& options = {});
/// The same from a checkpoint that is open, for callers that look at its metadata first.
LoadReport load_optimizer(Optimizer& optimizer, const checkpoint::Checkpoint& from,
                          const LoadOptions& options = {});

}  // namespace flashoptim

#endif

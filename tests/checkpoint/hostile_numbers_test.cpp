// Every number in a checkpoint's texts, replaced by numbers at the limits of arithmetic. Either the file is
// refused and nothing changed, or what it says can be used. Under the undefined-behaviour sanitizer this also
// proves that no sum or product of them overflows.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "flashoptim/optimizer.h"
#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const json kEnds[] = {0,
                      1,
                      2,
                      -1,
                      31,
                      33,
                      std::numeric_limits<std::int32_t>::max(),
                      std::int64_t{1} << 32,
                      std::int64_t{1} << 62,
                      std::numeric_limits<std::int64_t>::max() - 1,
                      std::numeric_limits<std::int64_t>::max(),
                      std::numeric_limits<std::int64_t>::min(),
                      std::uint64_t{1} << 63,
                      std::numeric_limits<std::uint64_t>::max(),
                      0.5,
                      -0.0,
                      1e300,
                      -1e300,
                      5e-324,
                      nullptr,
                      true,
                      "1",
                      json::array(),
                      json::object()};

/// A trained optimizer of a few shapes, quantised, one of its parameters a part of a larger one.
struct Trained {
    Trained() {
        optimizer.add_parameter({first.data(), DType::kFloat32, {8, 64}, {}}, "first");
        optimizer.add_parameter({second.data(), DType::kFloat32, {4, 3, 5}, {1, 4, 12}}, "second");
        optimizer.add_parameter({part.data(), DType::kFloat32, {2, 64}, {}}, "part", 0,
                                Shard{{8, 64}, {}, {2, 0}});
        optimizer.set_gradient(0, {gradient.data(), DType::kFloat32, {8, 64}, {}});
        optimizer.step();
    }
    std::string bytes() {
        std::string all;
        for (std::size_t id = 0; id < optimizer.parameter_count(); ++id) {
            all += std::to_string(optimizer.step_count(id)) + " ";
            for (const auto& tensor : optimizer.state(id)) {
                all.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
            }
            const auto weight = optimizer.stored_weight(id);
            all.append(reinterpret_cast<const char*>(weight.bytes.data()), weight.bytes.size());
        }
        return all + std::to_string(optimizer.hyperparameters(0).learning_rate);
    }

    static OptimizerOptions one_thread() {
        OptimizerOptions options;
        options.threads = 1;
        return options;
    }

    std::vector<float> first = std::vector<float>(512, 1.0F), second = std::vector<float>(60, 2.0F),
                       part = std::vector<float>(128, 3.0F), gradient = std::vector<float>(512, 0.1F);
    AdamW optimizer{{}, one_thread()};
};

/// The checkpoint in `folder` with another description and the same tensors.
void write_with(const fs::path& folder, const Checkpoint& like, const std::string& description) {
    std::vector<TensorFile> files;
    std::vector<std::vector<std::byte>> bytes;
    bytes.reserve(100);
    for (const auto& name : like.file_names()) {
        const auto file = like.file(name);
        auto& tensors = files.emplace_back(TensorFile{name, {}}).tensors;
        for (const auto& tensor : file.tensors()) {
            bytes.push_back(file.read(tensor));
            tensors.push_back({tensor.name, tensor.dtype, tensor.shape, bytes.back()});
        }
    }
    write(folder, description, files);
}

TEST(HostileNumbers, InTheOptimizersDescription) {
    const TestFolder folder(fast_place());
    Trained trained;
    save_optimizer(trained.optimizer, folder / "good");
    const auto good = Checkpoint::open(folder / "good");
    const json description = json::parse(good.metadata_json());
    const std::string before = trained.bytes();
    int refused = 0, taken = 0;
    const json flat = description.flatten();
    for (const auto& [place, value] : flat.items()) {
        if (!value.is_number()) continue;
        for (const json& end : kEnds) {
            SCOPED_TRACE(place + " " + end.dump());
            json changed = description;
            changed[json::json_pointer(place)] = end;
            write_with(folder / "bad", good, changed.dump());
            try {
                load_optimizer(trained.optimizer, folder / "bad");
            } catch (const FormatError&) {
                ++refused;
                ASSERT_EQ(trained.bytes(), before);
                continue;
            }
            ++taken;  // such as another learning rate, or more steps
            try {
                trained.optimizer.step();
            } catch (const Error&) {  // such as no more steps to count
            }
            save_optimizer(trained.optimizer, folder / "bad");
            load_optimizer(trained.optimizer, folder / "good");
            ASSERT_EQ(trained.bytes(), before);
        }
    }
    EXPECT_GT(refused, 300);
    EXPECT_GT(taken, 10);
}

TEST(HostileNumbers, InTheTableOfContents) {
    const TestFolder folder(fast_place());
    StepCheckpoint(5, 20).write_to(folder / "ckpt");
    const fs::path table = folder / "ckpt/checkpoint.json";
    const json content = json::parse(read_raw(table));
    const json flat = content.flatten();
    for (const auto& [place, value] : flat.items()) {
        if (!value.is_number()) continue;
        for (const json& end : kEnds) {
            json changed = content;
            changed[json::json_pointer(place)] = end;
            write_raw(table, changed.dump());
            if (changed == content) continue;
            EXPECT_THROW(step_in(folder / "ckpt"), FormatError) << place << " " << end;
        }
    }
}

// A file whose length is announced and that has no blocks behind it: as long as a file system allows.
TEST(HostileNumbers, InTheLengthOfAFile) {
    const TestFolder folder(fast_place());
    StepCheckpoint(5, 20).write_to(folder / "ckpt");
    for (const char* name : {"checkpoint.json", "metadata.json", "weights.safetensors"}) {
        StepCheckpoint(5, 20).write_to(folder / "ckpt");
        for (const auto length :
             {std::uintmax_t{1} << 31, std::uintmax_t{1} << 40, (std::uintmax_t{1} << 62)}) {
            std::error_code error;
            fs::resize_file(folder / "ckpt" / name, length, error);
            if (error) break;
            EXPECT_THROW(step_in(folder / "ckpt"), FormatError) << name << " " << length;
        }
        fs::remove(folder / "ckpt" / name);
        fs::remove_all(folder / "ckpt");
    }
    write_raw(folder / "x.safetensors", length_prefix(10) + "{}        ");
    std::error_code error;
    fs::resize_file(folder / "x.safetensors", std::uintmax_t{1} << 62, error);
    if (!error) {
        EXPECT_THROW(SafetensorsFile::open(folder / "x.safetensors"), FormatError);
    }
}

}  // namespace
}  // namespace flashoptim::checkpoint

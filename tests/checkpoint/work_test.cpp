// The work of opening, saving and loading, counted in basic blocks of this library's code (the parser's
// templates in it included), which is the same in every run: it grows with the number of tensors and not with
// its square. If this fails, a model of many small tensors takes minutes to load.
//
// The library under test is compiled once more for this test, with a call of the counter in each basic block.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "block_counter.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/optimizer.h"
#include "json_text.h"
#include "optimizer_manifest.h"
#include "safetensors_header.h"
#include "safetensors_writer.h"
#include "support.h"

namespace flashoptim::checkpoint {
namespace {

template <typename Action>
std::uint64_t work_of(Action action) {
    const std::uint64_t before = blocks_executed();
    action();
    return blocks_executed() - before;
}

std::string name_of_tensor(std::size_t n) {
    return "model.layers." + std::to_string(n / 16) + ".self_attn.projection." + std::to_string(n % 16) +
           ".weight";
}

std::vector<TensorData> tensors(std::size_t count) {
    static const std::vector<std::byte> bytes(8);
    std::vector<TensorData> made;
    for (std::size_t n = 0; n < count; ++n) {
        made.push_back({name_of_tensor(n), StorageType::kFloat32, {2, 1}, bytes});
    }
    return made;
}

std::string header_of(std::size_t count) {
    const auto made = tensors(count);
    return plan_safetensors(made, {{"format", "pt"}}, "x").opening.substr(kLengthBytes);
}

// Eight times as many may cost 8 times the work, and the logarithm of sorting: log2(10^5) / log2(10^5 / 8) is
// 1.22. A square would cost 64 times.
constexpr std::size_t kFew = 12'500, kMany = 100'000;
constexpr double kMost = 8.0 * 1.3;

template <typename Prepare, typename Action>
void expect_linear(Prepare prepare, Action action, std::size_t few = kFew, std::size_t many = kMany) {
    const auto small = prepare(few), large = prepare(many);
    const auto little = work_of([&] { action(small); }), much = work_of([&] { action(large); });
    ASSERT_GT(little, few) << "the library under test is not the one that counts";
    EXPECT_LE(static_cast<double>(much), static_cast<double>(little) * kMost) << little << " for " << few;
    ::testing::Test::RecordProperty("blocks_per_tensor", std::to_string(much / many));
}

TEST(Work, OfParsingAHeader) {
    expect_linear(header_of, [](const std::string& text) { parse_header(text, "x"); });
}

// Names that others choose: all alike at the beginning, or one tensor after another the smaller
// one; nothing helps an attacker.
TEST(Work, OfParsingAHeaderOfOddNames) {
    const auto reversed = [](std::size_t count) {
        std::string text = "{";
        for (std::size_t n = count; n-- > 0;) {
            const std::string begin = std::to_string(4 * (count - 1 - n)),
                              end = std::to_string(4 * (count - n));
            text += "\"" + std::string(50, 'a') + std::to_string(1'000'000 + n) +
                    R"(":{"dtype":"F32","shape":[],"data_offsets":[)" + begin + "," + end + "]}" +
                    (n > 0 ? "," : "}");
        }
        return text;
    };
    expect_linear(reversed, [](const std::string& text) { parse_header(text, "x"); });
}

TEST(Work, OfParsingMetadata) {
    const auto metadata = [](std::size_t count) {
        std::string text = R"({"__metadata__":{)";
        for (std::size_t n = 0; n < count; ++n) {
            text += (n > 0 ? ",\"" : "\"") + name_of_tensor(n) + "\":\"" + std::to_string(n) + "\"";
        }
        return text + "}}";
    };
    expect_linear(metadata, [](const std::string& text) { parse_header(text, "x"); });
}

TEST(Work, OfParsingJsonOfAnyForm) {
    for (const char* item : {"[]", "{}", "{\"a\":{}}", "[[],[]]", "1", "\"text\""}) {
        SCOPED_TRACE(item);
        const auto list = [item](std::size_t count) {
            std::string text = std::string("{\"list\":[") + item;
            for (std::size_t n = 1; n < count; ++n) text += std::string(",") + item;
            return text + "]}";
        };
        expect_linear(list, [](const std::string& text) { parse_json_object(text, "x"); }, 2'000, 16'000);
        const auto members = [item](std::size_t count) {
            std::string text = "{";
            for (std::size_t n = 0; n < count; ++n) {
                text += (n > 0 ? ",\"" : "\"") + std::to_string(n) + "\":" + item;
            }
            return text + "}";
        };
        expect_linear(members, [](const std::string& text) { parse_json_object(text, "x"); }, 2'000, 16'000);
    }
}

TEST(Work, OfWritingAndReadingAFile) {
    const TestFolder folder;
    expect_linear(tensors, [&](const auto& made) { write_safetensors(folder / "x.safetensors", made); });
    const auto written = [&](std::size_t count) {
        const auto file = folder / std::to_string(count);
        write_safetensors(file, tensors(count));
        return file;
    };
    expect_linear(written, [](const auto& path) {
        const auto file = SafetensorsFile::open(path);
        std::byte bytes[8];
        for (const auto& tensor : file.tensors()) file.read(file.tensor(tensor.name), bytes);
    });
}

TEST(Work, OfTheOptimizersDescription) {
    const auto described = [](std::size_t count) {
        OptimizerManifest manifest;
        manifest.groups.resize(2);
        for (std::size_t n = 0; n < count; ++n) {
            SavedParameter parameter;
            parameter.name = name_of_tensor(n);
            parameter.shape = parameter.strides = {3, 4};
            manifest.parameters.push_back(parameter);
        }
        return manifest;
    };
    expect_linear(described, [](const auto& manifest) { to_json(manifest); });
    expect_linear([&](std::size_t count) { return to_json(described(count)); },
                  [](const std::string& text) { parse_optimizer_manifest(text, "x"); });
}

/// An optimizer of many small parameters, and a folder for it.
struct Many {
    explicit Many(std::size_t count) : weights(count * 4) {
        for (std::size_t n = 0; n < count; ++n) {
            optimizer.add_parameter({weights.data() + n * 4, DType::kFloat32, {2, 2}, {}}, name_of_tensor(n));
        }
    }
    std::vector<float> weights;
    AdamW optimizer{{}, [] {
                        OptimizerOptions options;
                        options.threads = 1;
                        return options;
                    }()};
    TestFolder folder;
};

TEST(Work, OfSavingAndLoadingAnOptimizer) {
    const auto many = [](std::size_t count) { return std::make_unique<Many>(count); };
    expect_linear(
        many, [](const auto& m) { save_optimizer(m->optimizer, m->folder / "ckpt"); }, 1'000, 8'000);
    const auto saved = [&](std::size_t count) {
        auto m = many(count);
        save_optimizer(m->optimizer, m->folder / "ckpt");
        return m;
    };
    expect_linear(
        saved, [](const auto& m) { load_optimizer(m->optimizer, m->folder / "ckpt"); }, 1'000, 8'000);
}

}  // namespace
}  // namespace flashoptim::checkpoint

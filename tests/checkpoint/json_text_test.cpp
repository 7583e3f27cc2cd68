// Our JSON reader beside an independent one: both take the same texts, with the same values, after any
// change. What we write has the layout of earlier versions.
#include "json_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "manifest.h"
#include "optimizer_manifest.h"
#include "support.h"

namespace flashoptim::checkpoint {
namespace {

using nlohmann::json;

bool is_same(const JsonValue& ours, const json& theirs) {
    switch (theirs.type()) {
        case json::value_t::null:
            return ours.as<std::nullptr_t>() != nullptr;
        case json::value_t::boolean:
            return ours.as<bool>() != nullptr && *ours.as<bool>() == theirs.get<bool>();
        case json::value_t::number_integer:
            return ours.as<std::int64_t>() != nullptr &&
                   *ours.as<std::int64_t>() == theirs.get<std::int64_t>();
        case json::value_t::number_unsigned:
            return ours.as<std::uint64_t>() != nullptr &&
                   *ours.as<std::uint64_t>() == theirs.get<std::uint64_t>();
        case json::value_t::number_float:
            return ours.as<double>() != nullptr && *ours.as<double>() == theirs.get<double>();
        case json::value_t::string:
            return ours.as<std::string>() != nullptr && *ours.as<std::string>() == theirs.get<std::string>();
        case json::value_t::array: {
            const auto* list = ours.as<JsonValue::List>();
            if (list == nullptr || list->size() != theirs.size()) return false;
            for (std::size_t n = 0; n < list->size(); ++n) {
                if (!is_same((*list)[n], theirs[n])) return false;
            }
            return true;
        }
        case json::value_t::object: {
            const auto* members = ours.as<JsonValue::Object>();
            if (members == nullptr || members->size() != theirs.size()) return false;
            for (const auto& [key, value] : theirs.items()) {
                const JsonValue* found = ours.find(key);
                if (found == nullptr || !is_same(*found, value)) return false;
            }
            return true;
        }
        default:
            return false;
    }
}

const char* const kTexts[] = {
    R"({"a":null,"b":[true,false,-0,0,-1,18446744073709551615,18446744073709551616,)"
    R"(-9223372036854775808,1.5e-3,1E5]})",
    R"({"":{"":{"":[[],{},[[{}]],""]}},"z":1,"a":2,"m":[{"q":"\u00e9\n\"\\"},{"q":2}]})",
    R"( { "w" : { "dtype" : "F32" , "shape" : [ 2 , 3 ] , "data_offsets" : [ 0 , 24 ] } ,)"
    R"( "__metadata__" : { "k" : "v" } } )",
};

TEST(JsonText, IsReadAsAnIndependentReaderReadsIt) {
    for (const char* text : kTexts)
        EXPECT_TRUE(is_same(parse_json_object(text, "x"), json::parse(text))) << text;
}

// Any byte may be changed, removed, doubled, or moved: both refuse the text, or both read the same. Ours also
// refuses a key that is there twice, where the other keeps one of the two.
TEST(JsonText, OfRandomChangesIsRefusedOrReadTheSame) {
    std::mt19937 random(11);
    int taken = 0, refused = 0, twice = 0;
    const std::string alphabet = R"({}[]",:\0123456789.-+eEtrufalsn ab)";
    for (int round = 0; round < 60'000; ++round) {
        std::string text = kTexts[random() % std::size(kTexts)];
        for (auto changes = 1 + random() % 3; changes > 0; --changes) {
            const std::size_t place = random() % text.size();
            switch (random() % 4) {
                case 0:
                    text[place] = alphabet[random() % alphabet.size()];
                    break;
                case 1:
                    text.erase(place, 1 + random() % 4);
                    break;
                case 2: {
                    const std::string piece = text.substr(random() % text.size(), random() % 12);
                    text.insert(text.begin() + static_cast<std::ptrdiff_t>(place), piece.begin(),
                                piece.end());
                    break;
                }
                default:
                    text[place] = static_cast<char>(random() % 256);
            }
            if (text.empty()) text.push_back('{');
        }
        const json theirs = json::parse(text, nullptr, false);
        try {
            const JsonValue ours = parse_json_object(text, "x");
            ASSERT_TRUE(is_same(ours, theirs)) << text;
            ++taken;
        } catch (const FormatError& error) {
            const bool is_twice = std::string(error.what()).find("twice") != std::string::npos;
            const bool is_foreign = text.find('\0') != std::string::npos || !theirs.is_object();
            ASSERT_TRUE(is_twice || is_foreign) << text << " " << error.what();
            ++(is_twice ? twice : refused);
        }
    }
    EXPECT_GT(taken, 1000);
    EXPECT_GT(refused, 1000);
    EXPECT_GT(twice, 10);
}

TEST(JsonText, OfTheTableIsLaidOutAsEver) {
    for (const Manifest& manifest : {Manifest{{"metadata.json", {2, 0x44bbbde8}}},
                                     Manifest{{"metadata.json", {0, 0}},
                                              {"weights.safetensors", {~0ULL, 1}},
                                              {"\xC3\xA9\".safetensors", {7, 0xFFFFFFFF}}}}) {
        const std::string text = format_manifest(manifest);
        EXPECT_EQ(nlohmann::ordered_json::parse(text).dump(2) + "\n", text);
        const Manifest again = parse_manifest(text, "x");
        ASSERT_EQ(again.size(), manifest.size());
        for (const auto& [name, entry] : manifest) {
            EXPECT_EQ(again.at(name).byte_count, entry.byte_count);
            EXPECT_EQ(again.at(name).crc32, entry.crc32);
        }
    }
}

TEST(JsonText, OfTheOptimizersDescriptionIsLaidOutAsEver) {
    OptimizerManifest manifest;
    const auto expect_same = [&] {
        const std::string text = to_json(manifest);
        EXPECT_EQ(json::parse(text).dump(1), text);
        EXPECT_EQ(to_json(parse_optimizer_manifest(text, "x")), text);
    };
    expect_same();
    manifest.groups.resize(2);
    manifest.groups[1].learning_rate = 1e-8;
    manifest.groups[1].weight_decay = 0.1 + 0.2;
    manifest.groups[1].maximize = true;
    expect_same();
    manifest.parameters.resize(3);
    manifest.parameters[0].name = "\xC3\xA9 \"w\"\n";
    manifest.parameters[0].steps = 9'007'199'254'740'993;
    manifest.parameters[0].shape = {2, 3};
    manifest.parameters[0].strides = {3, 1};
    manifest.parameters[1].name = "scalar";
    manifest.parameters[2] = {.name = "last",
                              .group = 1,
                              .has_momentum = true,
                              .bad_elements = 5,
                              .has_state = false,
                              .dtype = DType::kBFloat16,
                              .shape = {0},
                              .strides = {1},
                              .place = {1, 2, 3, 4},
                              .format = Format::kPaper,
                              .quantized = true,
                              .master_weight_bits = 24};
    expect_same();
    manifest.parameters[1].name = "\xFF";
    EXPECT_THROW(to_json(manifest), InvalidArgument);
}

}  // namespace
}  // namespace flashoptim::checkpoint

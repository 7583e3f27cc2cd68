// Names of files and texts of libraries inside our messages. If these fail, a file's name ends a message
// before its remedy, or drives the terminal of whoever reads it.
#include "flashoptim/system/one_line.h"

#include <gtest/gtest.h>

#include <string>

namespace flashoptim {

namespace {

bool is_safe(const std::string& text) {
    for (std::string_view rest = text; !rest.empty();) {
        const auto length = utf8_length(rest);
        const auto first = static_cast<unsigned char>(rest[0]);
        if (length == 0 || first < 0x20U || first == 0x7fU) return false;
        if (length == 2 && first == 0xc2U && static_cast<unsigned char>(rest[1]) < 0xa0U) return false;
        rest.remove_prefix(length);
    }
    return true;
}

std::string utf8(char32_t code) {
    const auto part = [code](int shift, unsigned mask, unsigned lead) {
        return static_cast<char>(lead | ((code >> shift) & mask));
    };
    if (code < 0x80U) return {static_cast<char>(code)};
    if (code < 0x800U) return {part(6, 0x1fU, 0xc0U), part(0, 0x3fU, 0x80U)};
    if (code < 0x10000U) return {part(12, 0xfU, 0xe0U), part(6, 0x3fU, 0x80U), part(0, 0x3fU, 0x80U)};
    return {part(18, 7U, 0xf0U), part(12, 0x3fU, 0x80U), part(6, 0x3fU, 0x80U), part(0, 0x3fU, 0x80U)};
}

}  // namespace

TEST(OneLine, KeepsWhatIsPlain) {
    for (const std::string text : {"", "run/über/日本語/🙂.txt", "a b\\n'c\"", "C:\\x1b"}) {
        EXPECT_EQ(one_line(text), text);
    }
}

TEST(OneLine, EscapesAndLosesNothing) {
    EXPECT_EQ(one_line("a\nb\tc\rd"), "a\\nb\\tc\\rd");
    EXPECT_EQ(one_line("\x1b[31mred\x1b[0m\x7f"), "\\x1b[31mred\\x1b[0m\\x7f");
    EXPECT_EQ(one_line(std::string("a\0b", 3)), "a\\x00b");
    EXPECT_EQ(one_line("caf\xe9.txt"), "caf\\xe9.txt");
    EXPECT_EQ(one_line("\xc2\x9b"
                       "31m"),
              "\\x9b31m");
    EXPECT_EQ(one_line("\xe2\x80\xae"
                       "txt.exe\xe2\x80\xa8"),
              "\\u202etxt.exe\\u2028");
    EXPECT_EQ(one_line("end \xf0\x9f\x99"), "end \\xf0\\x9f\\x99");
}

TEST(OneLine, EveryCharacterAndEveryPairOfBytesIsSafeAndStaysAsItIsShown) {
    for (char32_t code = 0; code <= 0x10ffffU; ++code) {
        const auto shown = one_line(utf8(code));
        ASSERT_TRUE(is_safe(shown)) << static_cast<unsigned>(code);
        ASSERT_EQ(one_line(shown), shown) << static_cast<unsigned>(code);
    }
    for (unsigned pair = 0; pair < 0x10000U; ++pair) {
        const std::string text = {static_cast<char>(pair >> 8U), static_cast<char>(pair & 0xffU)};
        const auto shown = one_line(text);
        ASSERT_TRUE(is_safe(shown)) << pair;
        ASSERT_EQ(one_line(shown), shown) << pair;
    }
}

}  // namespace flashoptim

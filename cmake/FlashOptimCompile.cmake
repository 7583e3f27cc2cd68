# How everything here is compiled: the language, exact arithmetic, warnings, sanitizers. Nothing of this
# reaches a consumer of the installed libraries.

if(FLASHOPTIM_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Tools (clang-tidy, editors) read it.
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# What is installed finds its neighbours wherever the tree is moved, and Torch where it was.
file(RELATIVE_PATH from_bin_to_lib "/${CMAKE_INSTALL_BINDIR}" "/${CMAKE_INSTALL_LIBDIR}")
if(APPLE)
    set(CMAKE_INSTALL_RPATH "@loader_path;@loader_path/${from_bin_to_lib}")
else()
    set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/${from_bin_to_lib}")
endif()
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

if(FLASHOPTIM_TOP_LEVEL)
    find_program(FLASHOPTIM_CCACHE ccache)
    mark_as_advanced(FLASHOPTIM_CCACHE)
    foreach(language C CXX)
        if(FLASHOPTIM_CCACHE AND NOT CMAKE_${language}_COMPILER_LAUNCHER)
            set(CMAKE_${language}_COMPILER_LAUNCHER "${FLASHOPTIM_CCACHE}")
        endif()
    endforeach()
endif()

# The oldest compilers that scripts/compilers.sh tries.
set(flashoptim_oldest_GNU 11)
set(flashoptim_oldest_Clang 14)
set(flashoptim_oldest_AppleClang 15)
set(flashoptim_compilers "GCC 11, Clang 14 or Apple Clang 15, or later; choose one with -DCMAKE_CXX_COMPILER=... in an empty build folder")
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang|AppleClang)$" OR CMAKE_CXX_COMPILER_FRONTEND_VARIANT STREQUAL "MSVC")
    message(FATAL_ERROR "flashoptim is not built with ${CMAKE_CXX_COMPILER} (${CMAKE_CXX_COMPILER_ID}), whose arithmetic it cannot fix: "
        "it needs ${flashoptim_compilers}")
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS flashoptim_oldest_${CMAKE_CXX_COMPILER_ID})
    message(FATAL_ERROR "${CMAKE_CXX_COMPILER} is ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, which is too old: "
        "flashoptim needs ${flashoptim_compilers}")
endif()
# A new compiler may come with an old library, and the other way round.
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("
    #include <algorithm>
    #include <bit>
    #include <concepts>
    #include <ranges>
    #include <span>
    #include <vector>
    int main() {
        std::vector<int> numbers(2);
        std::ranges::sort(numbers);
        const std::span<const int> all(numbers);
        return static_cast<int>(std::bit_cast<unsigned>(1.0F) + all.size());
    }" FLASHOPTIM_HAS_CXX20_LIBRARY)
if(NOT FLASHOPTIM_HAS_CXX20_LIBRARY)
    message(FATAL_ERROR "the standard library of ${CMAKE_CXX_COMPILER} lacks what flashoptim needs of C++20 "
        "(span, bit_cast, ranges): it needs that of GCC 11 or libc++ 16, or later; Clang takes GCC's with --gcc-toolchain, "
        "libc++ with -stdlib=libc++")
endif()

# The same bits everywhere: the compiler must neither contract nor reorder; -fno-math-errno lets sqrt and fma
# become instructions. What is undone here may come from a surrounding project, a toolchain file or the
# environment.
set(flashoptim_exact_options
    -fno-fast-math -fno-unsafe-math-optimizations -fno-associative-math -fno-reciprocal-math -fno-finite-math-only
    -fsigned-zeros -fno-rounding-math
    -ffp-contract=off -fno-math-errno)  # after -fno-fast-math, which sets both anew
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND flashoptim_exact_options -fno-single-precision-constant)
endif()
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${flashoptim_exact_options};-fexceptions>" $<$<COMPILE_LANGUAGE:CXX>:-frtti>)

# The libraries that C++ programs are linked with and C programs are not.
set(flashoptim_cxx_runtime ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(REMOVE_ITEM flashoptim_cxx_runtime ${CMAKE_C_IMPLICIT_LINK_LIBRARIES} gcc_s gcc)
list(REMOVE_DUPLICATES flashoptim_cxx_runtime)

# flashoptim_serve_consumers(TARGET): flags of consumers that link TARGET. If the linker is that of C, a
# static library brings the runtime of C++ itself.
function(flashoptim_serve_consumers target)
    if(NOT FLASHOPTIM_FOR_C)
        target_compile_features(${target} PUBLIC cxx_std_20)
    endif()
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "STATIC_LIBRARY")
        foreach(library IN LISTS flashoptim_cxx_runtime)
            target_link_libraries(${target} INTERFACE "$<$<LINK_LANGUAGE:C>:${library}>")
        endforeach()
    endif()
endfunction()

# flashoptim_export_ours(TARGET): a shared library exports nothing of the libraries within it.
function(flashoptim_export_ours target)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "SHARED_LIBRARY" AND NOT APPLE)
        set(map "${PROJECT_SOURCE_DIR}/cmake/exports.map")
        target_link_options(${target} PRIVATE "-Wl,--version-script=${map}")
        set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${map}")
    endif()
endfunction()

# flashoptim_keep_flags(TARGET): our flags come after all flags from outside, including options of directories
# and of libraries that are linked everywhere. Call it in the folder that defines the target, once it has all
# of its sources. Optimisation across files and joining them would mix instruction sets; a version script says
# what is exported.
function(flashoptim_keep_flags target)
    set(options ${flashoptim_exact_options} -fexceptions -fno-lto -fvisibility=default)
    set(cxx_options ${CMAKE_CXX20_STANDARD_COMPILE_OPTION} -frtti -fthreadsafe-statics -fno-visibility-inlines-hidden)
    if(NOT FLASHOPTIM_WERROR)
        list(APPEND options -Wno-error)
    endif()
    get_target_property(sources ${target} SOURCES)
    foreach(source IN LISTS sources)
        # First, as a source may have options of its own.
        get_source_file_property(own "${source}" COMPILE_OPTIONS)
        if(NOT own)
            set(own "")
        endif()
        set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS
            "$<$<COMPILE_LANGUAGE:C,CXX>:${options}>;$<$<COMPILE_LANGUAGE:CXX>:${cxx_options}>;${own}")
    endforeach()
    set_target_properties(${target} PROPERTIES
        INTERPROCEDURAL_OPTIMIZATION OFF
        UNITY_BUILD OFF)
    foreach(configuration DEBUG RELEASE RELWITHDEBINFO MINSIZEREL ${CMAKE_CONFIGURATION_TYPES})
        string(TOUPPER "${configuration}" configuration)
        set_target_properties(${target} PROPERTIES INTERPROCEDURAL_OPTIMIZATION_${configuration} OFF)
    endforeach()
    if(NOT FLASHOPTIM_TOP_LEVEL)
        set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY "" CXX_CPPCHECK "" CXX_CPPLINT "" CXX_INCLUDE_WHAT_YOU_USE "")
    endif()
    flashoptim_export_ours(${target})
endfunction()

# Link with $<BUILD_INTERFACE:flashoptim_warnings>, or plainly where the target is not installed.
add_library(flashoptim_warnings INTERFACE)
target_compile_options(flashoptim_warnings INTERFACE
    "$<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow>>"
    "$<BUILD_INTERFACE:$<$<AND:$<BOOL:${FLASHOPTIM_WERROR}>,$<COMPILE_LANGUAGE:C,CXX>>:-Werror>>")

if(FLASHOPTIM_SANITIZE)
    list(JOIN FLASHOPTIM_SANITIZE "," sanitizers)
    add_compile_options(-fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${sanitizers})
    # GCC's analysis of uninitialised values is wrong about instrumented code.
    target_compile_options(flashoptim_warnings INTERFACE $<BUILD_INTERFACE:$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>>)
endif()

# What everything that we compile is compiled with: the language, exact arithmetic, warnings, sanitizers. Nothing of this reaches a
# consumer of the installed libraries.

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

if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    message(FATAL_ERROR "flashoptim is built with GCC or Clang, not with ${CMAKE_CXX_COMPILER_ID}: "
        "its arithmetic is promised bit for bit only under -ffp-contract=off")
endif()

# The same bits everywhere: the compiler must neither contract nor reorder; -fno-math-errno lets sqrt and fma become instructions.
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off;-fno-math-errno>")
string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
get_directory_property(inherited_options COMPILE_OPTIONS)  # also those of a project that adds this one
set(inexact_flags "-ffast-math|-Ofast|-funsafe-math-optimizations|-ffinite-math-only|-fassociative-math|-freciprocal-math")
if("${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}} ${inherited_options}" MATCHES "${inexact_flags}|-ffp-contract=fast")
    message(FATAL_ERROR "the compiler flags ask for inexact arithmetic (${CMAKE_MATCH_0}); flashoptim promises exact results: remove it")
endif()

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

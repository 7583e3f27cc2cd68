// Gives one error with its remedy, instead of hundreds, if the language is older than C++20. Every public
// header includes this first and is then empty. c_api.h and version.h, which C reads too, need neither.
#pragma once

#if __cplusplus >= 202002L
#define FLASHOPTIM_CXX20
#else
#error "flashoptim needs C++20: compile with -std=c++20 (CMake: set(CMAKE_CXX_STANDARD 20))"
#endif

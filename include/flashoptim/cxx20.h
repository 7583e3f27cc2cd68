// One error with its remedy where the language is older than C++20, instead of hundreds. Every public header includes this first and
// is empty then; those that C reads, c_api.h and version.h, need neither.
#pragma once

#if __cplusplus >= 202002L
#define FLASHOPTIM_CXX20
#else
#error "flashoptim needs C++20: compile with -std=c++20 (CMake: set(CMAKE_CXX_STANDARD 20))"
#endif

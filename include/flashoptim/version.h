// The version of the library, for C, C++ and the build, which reads it here. Versions of formats are not
// here.
#pragma once

#define FLASHOPTIM_VERSION_MAJOR 0
#define FLASHOPTIM_VERSION_MINOR 1
#define FLASHOPTIM_VERSION_PATCH 0
#define FLASHOPTIM_VERSION_STRING "0.1.0"

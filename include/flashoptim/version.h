// The version of the library, for C and C++ and for the build, which reads it from here. Format versions never stand here.
#pragma once

#define FLASHOPTIM_VERSION_MAJOR 0
#define FLASHOPTIM_VERSION_MINOR 1
#define FLASHOPTIM_VERSION_PATCH 0
#define FLASHOPTIM_VERSION_STRING "0.1.0"

# Decides whether checkpoints and the C interface, which has them, are built: sets FLASHOPTIM_WITH_CHECKPOINT.
# nlohmann-json is needed to build them, not to use them.
set(FLASHOPTIM_WITH_CHECKPOINT OFF)
if(FLASHOPTIM_BUILD_CHECKPOINT STREQUAL "OFF")
    return()
endif()
find_package(nlohmann_json 3.10 QUIET)
if(nlohmann_json_FOUND)
    set(FLASHOPTIM_WITH_CHECKPOINT ON)
    return()
endif()
set(remedy "install it (Debian: nlohmann-json3-dev) or pass -DCMAKE_PREFIX_PATH=<where it is>")
if(FLASHOPTIM_BUILD_CHECKPOINT STREQUAL "ON" OR FLASHOPTIM_BUILD_TESTS OR FLASHOPTIM_BUILD_APPS)
    message(FATAL_ERROR "nlohmann-json 3.10 or later was not found: ${remedy}, or choose FLASHOPTIM_BUILD_CHECKPOINT=OFF"
        " (tests and the flashoptim command need it)")
endif()
message(STATUS "flashoptim without checkpoints and the C interface: nlohmann-json 3.10 or later was not found. For them ${remedy}")

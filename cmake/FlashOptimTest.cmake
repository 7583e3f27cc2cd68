# flashoptim_add_test(NAME SOURCES a.cpp b.cpp [LINK target...] [LABELS x...] [TIMEOUT seconds]
# [PROCESSES n]): one GoogleTest executable whose cases ctest knows one by one, as NAME.Suite.Case, each in a
# process of its own. Every case carries its folder under tests/ as a label, so that `ctest -L format` runs a
# folder. The label `threads` marks tests that run under the thread sanitizer.
#
# With PROCESSES n the cases share n processes, which ctest knows as NAME.1 to NAME.n. This is for executables
# that load LibTorch, which takes longer than most of their cases. It is not for cases that depend on a fresh
# process, such as those that measure or limit its memory. GoogleTest writes the cases of NAME.1 to
# test-cases/NAME.1.xml in the build folder, where scripts/check.py reads them.

find_package(GTest REQUIRED)
include(GoogleTest)

# The thread sanitizer of older compilers dies under the address randomisation of newer kernels; setarch -R
# switches that off.
if("thread" IN_LIST FLASHOPTIM_SANITIZE)
    find_program(FLASHOPTIM_SETARCH setarch)
    mark_as_advanced(FLASHOPTIM_SETARCH)
    if(FLASHOPTIM_SETARCH)
        execute_process(COMMAND "${FLASHOPTIM_SETARCH}" -R true RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
        if(status EQUAL 0)
            set(CMAKE_CROSSCOMPILING_EMULATOR "${FLASHOPTIM_SETARCH};-R")
        endif()
    endif()
endif()

function(flashoptim_add_test name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT;PROCESSES" "SOURCES;LINK;LABELS")
    if(NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "flashoptim_add_test(${name} SOURCES a.cpp [LINK target...] [LABELS x...] "
            "[TIMEOUT seconds] [PROCESSES n])")
    endif()
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 600)
    endif()
    get_filename_component(folder "${CMAKE_CURRENT_SOURCE_DIR}" NAME)
    list(PREPEND arg_LABELS "${folder}")
    list(REMOVE_DUPLICATES arg_LABELS)

    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest GTest::gtest_main flashoptim_warnings)
    if(arg_PROCESSES)
        foreach(process RANGE 1 ${arg_PROCESSES})
            math(EXPR shard "${process} - 1")
            set(test ${name}.${process})
            add_test(NAME ${test}
                COMMAND ${name} "--gtest_output=xml:${PROJECT_BINARY_DIR}/test-cases/${test}.xml")
            set_tests_properties(${test} PROPERTIES
                ENVIRONMENT "GTEST_TOTAL_SHARDS=${arg_PROCESSES};GTEST_SHARD_INDEX=${shard}"
                LABELS "${arg_LABELS}"
                TIMEOUT ${arg_TIMEOUT})
        endforeach()
        return()
    endif()
    gtest_discover_tests(${name}
        TEST_PREFIX "${name}."
        DISCOVERY_TIMEOUT 120
        TEST_LIST ${name}_cases
        PROPERTIES TIMEOUT ${arg_TIMEOUT})

    # gtest_discover_tests loses the semicolons of a list, so ctest reads the labels from a file of its own.
    set(label_file "${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake")
    file(WRITE "${label_file}" "set_tests_properties(\${${name}_cases} PROPERTIES LABELS \"${arg_LABELS}\")\n")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${label_file}")
endfunction()

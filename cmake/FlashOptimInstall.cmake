# What `cmake --install` puts where: libraries and their export sets (one per component), headers, the package
# files for CMake and pkg-config. The libraries themselves are defined in their folders.
include(CMakePackageConfigHelpers)
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/flashoptim")
set(flashoptim_components "")

# flashoptim_install_library(TARGET COMPONENT EXPORT_NAME): installs TARGET, for consumers
# flashoptim::EXPORT_NAME, as COMPONENT.
macro(flashoptim_install_library target component export_name)
    if(TARGET ${target})
        set_target_properties(${target} PROPERTIES
            EXPORT_NAME ${export_name}
            DEFINE_SYMBOL ""
            VERSION ${PROJECT_VERSION}
            SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
        install(TARGETS ${target} EXPORT flashoptim_${component}
            ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
            LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
            RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}"
            INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
        install(EXPORT flashoptim_${component}
            FILE flashoptim-${component}-targets.cmake
            NAMESPACE flashoptim::
            DESTINATION "${package_folder}")
        list(APPEND flashoptim_components ${component})
    endif()
endmacro()

# In the order of their dependencies, which is the order in which the package file includes them.
flashoptim_install_library(flashoptim core flashoptim)
flashoptim_install_library(flashoptim_cuda cuda cuda)
flashoptim_install_library(flashoptim_checkpoint checkpoint checkpoint)
flashoptim_install_library(flashoptim_c c c)
flashoptim_install_library(flashoptim_torch torch torch)

# Torch stays where it is. CMake leaves out link folders inside the source tree, where .venv lies, so this one
# is named.
foreach(target flashoptim_torch flashoptim_command)
    if(TARGET ${target})
        set_property(TARGET ${target} APPEND PROPERTY INSTALL_RPATH "${TORCH_INSTALL_PREFIX}/lib")
    endif()
endforeach()

# Headers of libraries that are not installed would only disappoint.
set(absent_headers "")
foreach(pair "checkpoint:checkpoint.h" "checkpoint:checkpoint_folder.h" "checkpoint:json.h"
    "checkpoint:atomic_path.h" "checkpoint:crc32.h" "checkpoint:descriptor_path.h" "checkpoint:file_io.h"
    "checkpoint:file_lock.h" "checkpoint:message.h" "checkpoint:save_folder.h"
    "c:c_api.h" "torch:libtorch.h" "torch:libtorch_optimizer.h" "torch:libtorch_headers.h"
    "torch:libtorch_checkpoint.h" "cuda:cuda.h" "cuda:cuda_device.h")
    string(REPLACE ":" ";" pair "${pair}")
    list(GET pair 0 component)
    list(GET pair 1 header)
    if(NOT component IN_LIST flashoptim_components)
        list(APPEND absent_headers PATTERN "${header}" EXCLUDE)
    endif()
endforeach()
install(DIRECTORY include/flashoptim DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
    FILES_MATCHING PATTERN "*.h" ${absent_headers})

# Before 1.0 a minor version may break its users, so 0.1.x does not stand in for 0.2.
configure_package_config_file(cmake/flashoptimConfig.cmake.in "${PROJECT_BINARY_DIR}/flashoptimConfig.cmake"
    INSTALL_DESTINATION "${package_folder}"
    NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/flashoptimConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/flashoptimConfig.cmake" "${PROJECT_BINARY_DIR}/flashoptimConfigVersion.cmake"
    DESTINATION "${package_folder}")

# flashoptim_install_pkg_config(TARGET DESCRIPTION [REQUIRES...]): TARGET.pc, good from wherever the tree is
# moved. A static library brings what it needs itself, so that `pkg-config --libs` alone links with either
# kind.
function(flashoptim_install_pkg_config target description)
    if(NOT TARGET ${target})
        return()
    endif()
    get_target_property(type ${target} TYPE)
    set(also_libraries "")
    if(type STREQUAL "STATIC_LIBRARY")
        list(TRANSFORM flashoptim_cxx_runtime PREPEND "-l" OUTPUT_VARIABLE also_libraries)
        list(JOIN also_libraries " " also_libraries)
        string(PREPEND also_libraries "-pthread ")
        if(target STREQUAL "flashoptim_cuda")
            set(also_libraries "-L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt ${also_libraries}")
        endif()
    endif()
    list(JOIN ARGN " " requires)
    file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
    string(REGEX REPLACE "/$" "" up "${up}")
    string(REPLACE "_" "-" name "${target}")
    file(GENERATE OUTPUT "${PROJECT_BINARY_DIR}/${name}.pc" CONTENT
"prefix=\${pcfiledir}/${up}
libdir=\${prefix}/${CMAKE_INSTALL_LIBDIR}
includedir=\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}

Name: ${name}
Description: ${description}
Version: ${PROJECT_VERSION}
Requires: ${requires}
Cflags: -I\${includedir}
Libs: -L\${libdir} -l${target} ${also_libraries}
")
    install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endfunction()

flashoptim_install_pkg_config(flashoptim "${PROJECT_DESCRIPTION}")
flashoptim_install_pkg_config(flashoptim_checkpoint "Checkpoints of flashoptim as safetensors" flashoptim)
flashoptim_install_pkg_config(flashoptim_cuda "The CUDA backend of flashoptim" flashoptim)
set(cuda_of_c "")
if(FLASHOPTIM_WITH_CUDA)
    set(cuda_of_c flashoptim-cuda)
endif()
flashoptim_install_pkg_config(flashoptim_c "flashoptim for C and any foreign function interface"
    flashoptim-checkpoint ${cuda_of_c})

install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/flashoptim")

# What `cmake --install` puts where: libraries and their export sets (one per component), headers, the package files for CMake and
# pkg-config. The libraries themselves are defined in their rooms.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/flashoptim")

# flashoptim_install_library(TARGET COMPONENT): exports TARGET as flashoptim::COMPONENT.
function(flashoptim_install_library target component)
    if(NOT TARGET ${target})
        return()
    endif()
    set_target_properties(${target} PROPERTIES
        EXPORT_NAME ${component}
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
    set_property(GLOBAL APPEND PROPERTY FLASHOPTIM_COMPONENTS ${component})
endfunction()

flashoptim_install_library(flashoptim flashoptim)
flashoptim_install_library(flashoptim_c c)
flashoptim_install_library(flashoptim_checkpoint checkpoint)
flashoptim_install_library(flashoptim_torch torch)

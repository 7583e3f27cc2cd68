# Finds LibTorch and decides whether the folders that need it are built: sets FLASHOPTIM_WITH_TORCH. They need
# checkpoints, too. The repository's own .venv is looked at first, then CMAKE_PREFIX_PATH, for example
# $(python -c 'import torch; print(torch.utils.cmake_prefix_path)').

set(FLASHOPTIM_WITH_TORCH FALSE)
if(NOT FLASHOPTIM_TORCH STREQUAL "OFF")
    if(FLASHOPTIM_TOP_LEVEL)
        file(GLOB torch_in_venv "${CMAKE_CURRENT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch/share/cmake/Torch")
    endif()
    find_path(FLASHOPTIM_TORCH_CONFIG TorchConfig.cmake
        HINTS ${Torch_DIR} ${torch_in_venv}
        PATH_SUFFIXES Torch share/cmake/Torch)
    mark_as_advanced(FLASHOPTIM_TORCH_CONFIG)

    # Torch's own package file stops the configuration where a CUDA build of it meets no CUDA toolkit.
    set(torch_obstacle "")
    set(torch_version "")
    if(EXISTS "${FLASHOPTIM_TORCH_CONFIG}/TorchConfigVersion.cmake")
        file(STRINGS "${FLASHOPTIM_TORCH_CONFIG}/TorchConfigVersion.cmake" torch_version REGEX "PACKAGE_VERSION \"[0-9.]+")
        string(REGEX MATCH "[0-9]+[0-9.]*" torch_version "${torch_version}")
    endif()
    if(NOT FLASHOPTIM_TORCH_CONFIG)
        set(torch_obstacle "Torch was not found: run scripts/setup.sh, or pass -DCMAKE_PREFIX_PATH=<torch.utils.cmake_prefix_path>")
    elseif(torch_version VERSION_LESS 2.11)
        set(torch_obstacle "LibTorch in ${FLASHOPTIM_TORCH_CONFIG} is version '${torch_version}' and 2.11 or later is needed: install one")
    elseif(NOT FLASHOPTIM_WITH_CHECKPOINT)
        set(torch_obstacle "the LibTorch optimizers need checkpoints, which are not built: install nlohmann-json and choose FLASHOPTIM_BUILD_CHECKPOINT=ON")
    elseif(EXISTS "${FLASHOPTIM_TORCH_CONFIG}/../../../lib/libtorch_cuda.so")
        find_package(CUDAToolkit QUIET)
        if(NOT CUDAToolkit_FOUND)
            set(torch_obstacle "Torch in ${FLASHOPTIM_TORCH_CONFIG} is a CUDA build and there is no CUDA toolkit: install one, or Torch's CPU build")
        endif()
    endif()

    if(NOT torch_obstacle)
        set(Torch_DIR "${FLASHOPTIM_TORCH_CONFIG}" CACHE PATH "Folder of TorchConfig.cmake" FORCE)
        # Torch's package file warns of a library that its wheels do not carry; c10, which is linked anyway,
        # stands in for it.
        find_library(kineto_LIBRARY NAMES kineto c10 PATHS "${FLASHOPTIM_TORCH_CONFIG}/../../../lib" NO_DEFAULT_PATH)
        mark_as_advanced(kineto_LIBRARY)
        # A CUDA build of Torch adds its own generations of GPUs, of which nvcc may know not all, and its own
        # switches to what every kernel behind is compiled with, and complains of CMAKE_CUDA_ARCHITECTURES.
        set(cuda_settings CMAKE_CUDA_FLAGS CMAKE_CUDA_STANDARD CMAKE_CUDA_STANDARD_REQUIRED CMAKE_CUDA_ARCHITECTURES)
        foreach(name IN LISTS cuda_settings)
            set(kept_${name} "${${name}}")
            set(has_${name} FALSE)
            if(DEFINED ${name})
                set(has_${name} TRUE)
            endif()
        endforeach()
        unset(CMAKE_CUDA_ARCHITECTURES)
        find_package(Torch REQUIRED)
        foreach(name IN LISTS cuda_settings)
            unset(${name})
            if(has_${name})
                set(${name} "${kept_${name}}")
            endif()
        endforeach()
        set(FLASHOPTIM_WITH_TORCH TRUE)
    elseif(FLASHOPTIM_TORCH STREQUAL "AUTO")
        message(STATUS "flashoptim without LibTorch. ${torch_obstacle}")
    else()
        message(FATAL_ERROR "${torch_obstacle}; or configure with -DFLASHOPTIM_TORCH=OFF")
    endif()
endif()

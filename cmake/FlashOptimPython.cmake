# Decides whether the operators for PyTorch are built: sets FLASHOPTIM_TORCH_FOLDER, the torch package whose
# stable headers they are compiled against. No CUDA toolkit is needed for that, whichever torch it is.

set(FLASHOPTIM_TORCH_FOLDER "")
if(NOT FLASHOPTIM_BUILD_PYTHON)
    return()
endif()
set(obstacle "")
if(FLASHOPTIM_SANITIZE)
    set(obstacle "Python does not run under the sanitizers")
else()
    # Found already, or a wheel is built, which needs torch's headers and not LibTorch. An isolated build does
    # not see the packages of the Python that runs it, but they are there (python/build_backend.py).
    set(site_packages "")
    if(SKBUILD AND Python_EXECUTABLE)
        execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('platlib'))"
            OUTPUT_VARIABLE site_packages OUTPUT_STRIP_TRAILING_WHITESPACE)
    endif()
    find_path(FLASHOPTIM_TORCH_CONFIG TorchConfig.cmake
        HINTS ${Torch_DIR} ${site_packages}
        PATH_SUFFIXES Torch share/cmake/Torch torch/share/cmake/Torch)
    if(NOT FLASHOPTIM_TORCH_CONFIG)
        set(obstacle "Torch was not found: pass -DCMAKE_PREFIX_PATH=<torch.utils.cmake_prefix_path>")
    else()
        get_filename_component(folder "${FLASHOPTIM_TORCH_CONFIG}/../../.." ABSOLUTE)
        set(header "${folder}/include/torch/headeronly/version.h")
        set(minor 0)
        if(EXISTS "${header}")
            file(STRINGS "${header}" lines REGEX "#define TORCH_VERSION_M(AJOR|INOR) [0-9]+")
            list(JOIN lines " " lines)
            string(REGEX MATCH "MAJOR ([0-9]+).*MINOR ([0-9]+)" lines "${lines}")
            math(EXPR minor "1000 * ${CMAKE_MATCH_1} + ${CMAKE_MATCH_2}")
        endif()
        if(minor LESS 2010)
            set(obstacle "Torch in ${folder} is older than 2.10, where the stable ABI begins")
        endif()
    endif()
endif()

if(obstacle)
    message(FATAL_ERROR "${obstacle}; or configure with -DFLASHOPTIM_BUILD_PYTHON=OFF")
endif()
set(FLASHOPTIM_TORCH_FOLDER "${folder}")

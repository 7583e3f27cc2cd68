# flashoptim_add_room(FOLDER): adds the room that lies in FOLDER, with its place in the build tree named after it.

function(flashoptim_add_room folder)
    if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${folder}/CMakeLists.txt")
        add_subdirectory(${folder})
    endif()
endfunction()

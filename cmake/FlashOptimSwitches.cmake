# Switches with three values, and targets that are built only if they are used.

# flashoptim_read_switch(NAME): NAME as ON, OFF or AUTO, however the user wrote it.
function(flashoptim_read_switch name)
    string(TOUPPER "${${name}}" value)
    if(NOT value STREQUAL "AUTO")
        if(value)
            set(value ON)
        else()
            set(value OFF)
        endif()
    endif()
    set(${name} ${value} PARENT_SCOPE)
endfunction()

# flashoptim_build_if_linked(TARGET): in a project that adds this one and installs nothing of it, TARGET is
# built only if used.
function(flashoptim_build_if_linked target)
    if(NOT FLASHOPTIM_TOP_LEVEL AND NOT FLASHOPTIM_INSTALL)
        set_target_properties(${target} PROPERTIES EXCLUDE_FROM_ALL ON)
    endif()
endfunction()

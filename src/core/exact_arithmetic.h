// Stops the compilation of the library if a flag allows inexact arithmetic, wherever that flag was set. This
// header is not installed, because users may compile their own code as they like.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "flashoptim promises exact results: compile it without -ffast-math, -Ofast and -ffinite-math-only"
#endif

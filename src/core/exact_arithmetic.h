// Refuses to compile the library with inexact arithmetic, however the flag arrived. Not installed: users may
// compile their own code as they like.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "flashoptim promises exact results: compile it without -ffast-math, -Ofast and -ffinite-math-only"
#endif

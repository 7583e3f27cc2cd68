// The ten lines of a program that uses the installed core. Never more than that.
#include <cstdio>

#include "flashoptim/error.h"
#include "flashoptim/version.h"

int main() {
    try {
        throw flashoptim::IoError("FILE cannot be read");
    } catch (const flashoptim::Error& error) {
        std::puts(error.what());
    }
}

// Compares every enumerator of flashoptim/c_api.h with that of the library at compile time. The test of the
// header checks that each enumerator is listed here; it compares rules with the table of rules.
#include <type_traits>

#include "flashoptim/c_api.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/quantize.h"

namespace flashoptim::capi {

namespace {

template <class CEnum, class Enum>
constexpr bool same(CEnum c, Enum ours) {
    return static_cast<int>(c) == static_cast<int>(ours);
}

static_assert(same(FLASHOPTIM_FLOAT32, DType::kFloat32));
static_assert(same(FLASHOPTIM_BFLOAT16, DType::kBFloat16));
static_assert(same(FLASHOPTIM_FLOAT16, DType::kFloat16));

static_assert(same(FLASHOPTIM_FORMAT_NATIVE, Format::kNative));
static_assert(same(FLASHOPTIM_FORMAT_PAPER, Format::kPaper));
static_assert(same(FLASHOPTIM_FORMAT_FLOAT32, Format::kFloat32));

static_assert(same(FLASHOPTIM_NONFINITE_SKIP_ELEMENT, NonFinite::kSkipElement));
static_assert(same(FLASHOPTIM_NONFINITE_SKIP_STEP, NonFinite::kSkipStep));
static_assert(same(FLASHOPTIM_NONFINITE_ERROR, NonFinite::kError));

static_assert(same(FLASHOPTIM_BACKEND_AUTOMATIC, Backend::kAutomatic));
static_assert(same(FLASHOPTIM_BACKEND_SCALAR, Backend::kScalar));
static_assert(same(FLASHOPTIM_BACKEND_PORTABLE, Backend::kPortable));
static_assert(same(FLASHOPTIM_BACKEND_AVX2, Backend::kAvx2));
static_assert(same(FLASHOPTIM_BACKEND_AVX512, Backend::kAvx512));
static_assert(same(FLASHOPTIM_BACKEND_AVX512_VBMI, Backend::kAvx512Vbmi));
static_assert(same(FLASHOPTIM_BACKEND_NEON, Backend::kNeon));

static_assert(same(FLASHOPTIM_FIRST_MOMENT, MomentKind::kSigned));
static_assert(same(FLASHOPTIM_SECOND_MOMENT, MomentKind::kSquared));

// The library has no such enumerations. The values are those of the first release.
static_assert(same(FLASHOPTIM_HOST, 0));
static_assert(same(FLASHOPTIM_CUDA, 1));

static_assert(same(FLASHOPTIM_MASTER_NEAREST, 0));
static_assert(same(FLASHOPTIM_MASTER_DITHERED, 16));
static_assert(same(FLASHOPTIM_MASTER_24_BITS, 24));
static_assert(same(FLASHOPTIM_MASTER_32_BITS, 32));

static_assert(same(FLASHOPTIM_OK, 0));
static_assert(same(FLASHOPTIM_INVALID_ARGUMENT, 1));
static_assert(same(FLASHOPTIM_IO_ERROR, 2));
static_assert(same(FLASHOPTIM_FORMAT_ERROR, 3));
static_assert(same(FLASHOPTIM_NONFINITE, 4));
static_assert(same(FLASHOPTIM_OUT_OF_MEMORY, 5));
static_assert(same(FLASHOPTIM_INTERNAL_ERROR, 6));
static_assert(same(FLASHOPTIM_DEVICE_ERROR, 7));

// Constants with the meaning of a default.
static_assert(FLASHOPTIM_AUTOMATIC_THREADS == 0);
static_assert(FLASHOPTIM_FIRST_LEARNING_RATE == Hyperparameters{}.initial_learning_rate);

}  // namespace

}  // namespace flashoptim::capi

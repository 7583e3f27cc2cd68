/* The ends of what the C interface takes: structs of older and newer programs, the last step, the longest
   texts. If one of these fails, a program that was compiled earlier or later than the library is misread, or
   a binding cannot read what went wrong. */
#include <flashoptim/c_api.h>
#include <string.h>

#include "support.h"

/* A program may be older or newer than the library: its structs are shorter or longer. */
static void test_structs_of_other_versions(void) {
    struct newer_options {
        flashoptim_options known;
        int64_t later[4];
    } newer;
    struct newer_tensor {
        flashoptim_tensor known;
        void* later;
    } view;
    struct newer_memory {
        flashoptim_memory known;
        uint64_t later[2];
    } memory;
    float weight[4] = {1, 2, 3, 4};
    const int64_t extent[1] = {4};
    const flashoptim_tensor empty = FLASHOPTIM_TENSOR_INIT;
    flashoptim_options older;
    flashoptim_hyperparameters rates;
    flashoptim_optimizer* optimizer = NULL;

    /* The first version of the options ended before `place`. What is behind is not read, nor written. */
    memset(&older, 0xab, sizeof older);
    EXPECT_OK(flashoptim_options_init(&older, offsetof(flashoptim_options, place)));
    EXPECT(older.size == offsetof(flashoptim_options, place) && older.place != FLASHOPTIM_HOST);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, NULL, &older, &optimizer));
    EXPECT_OK(flashoptim_destroy(optimizer));
    older.size = offsetof(flashoptim_options, place) - 1;
    EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, &older, &optimizer) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "init function or macro") != NULL);

    /* So did that of the hyperparameters before `beta3`. */
    memset(&rates, 0xab, sizeof rates);
    EXPECT_OK(flashoptim_hyperparameters_init(&rates, offsetof(flashoptim_hyperparameters, beta3),
                                              FLASHOPTIM_ADAN));
    EXPECT(rates.size == offsetof(flashoptim_hyperparameters, beta3) && rates.no_prox != 0);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAN, &rates, NULL, &optimizer));
    EXPECT_OK(flashoptim_destroy(optimizer));

    /* A newer program's fields are 0 where it wants nothing of them. */
    memset(&newer, 0xab, sizeof newer);
    EXPECT_OK(flashoptim_options_init(&newer.known, sizeof newer));
    EXPECT(newer.known.size == sizeof newer && newer.later[0] == 0 && newer.later[3] == 0);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, NULL, &newer.known, &optimizer));
    newer.later[3] = INT64_MIN;
    EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, &newer.known, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    {
        flashoptim_optimizer* none = NULL;
        EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, &newer.known, &none) == FLASHOPTIM_INVALID_ARGUMENT);
        EXPECT(strstr(flashoptim_last_error(), "update the library") != NULL && none == NULL);
    }
    memset(&view, 0, sizeof view);
    view.known = empty;
    view.known.size = sizeof view;
    view.known.data = weight;
    view.known.ndim = 1;
    view.known.shape = extent;
    EXPECT_OK(flashoptim_add_parameter(optimizer, &view.known, NULL, 0, FLASHOPTIM_NO_SHARD, NULL));
    view.later = weight;
    EXPECT(flashoptim_set_gradient(optimizer, 0, &view.known) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "update the library") != NULL);
    memset(&memory, 0xab, sizeof memory);
    memory.known.size = sizeof memory;
    EXPECT_OK(flashoptim_memory_report(optimizer, &memory.known));
    EXPECT(memory.known.parameters == 4 && memory.later[0] == 0 && memory.later[1] == 0);
    EXPECT_OK(flashoptim_destroy(optimizer));
}

/* The largest step count: one step more has no number. */
static void test_the_last_step(void) {
    float weight[4] = {1, 2, 3, 4}, gradient[4] = {1, 1, 1, 1};
    const int64_t extent[1] = {4};
    int32_t rule;
    for (rule = FLASHOPTIM_SGD; rule <= FLASHOPTIM_ADAN; ++rule) {
        flashoptim_tensor view = FLASHOPTIM_TENSOR_INIT;
        flashoptim_optimizer* optimizer = NULL;
        int64_t steps = 0;
        view.ndim = 1;
        view.shape = extent;
        view.data = weight;
        EXPECT_OK(flashoptim_create(rule, NULL, NULL, &optimizer));
        EXPECT_OK(flashoptim_add_parameter(optimizer, &view, NULL, 0, NULL, NULL));
        view.data = gradient;
        EXPECT_OK(flashoptim_set_gradient(optimizer, 0, &view));
        EXPECT_OK(flashoptim_set_step_count(optimizer, 0, INT64_MAX - 1));
        EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
        EXPECT_OK(flashoptim_step_count(optimizer, 0, &steps));
        EXPECT(steps == INT64_MAX);
        EXPECT(flashoptim_step(optimizer, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
        EXPECT(flashoptim_step_parameter(optimizer, 0, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
        EXPECT_OK(flashoptim_step_count(optimizer, 0, &steps));
        EXPECT(steps == INT64_MAX);
        EXPECT_OK(flashoptim_destroy(optimizer));
    }
}

/* A text that names a parameter is cut where a character ends, and holds no line break:
   a binding reads it as UTF-8. */
static void test_texts_of_errors(void) {
    static char name[FLASHOPTIM_MAX_TEXT_BYTES];
    static float weight[4];
    const int64_t extent[1] = {4};
    flashoptim_tensor view = FLASHOPTIM_TENSOR_INIT;
    flashoptim_optimizer* optimizer = NULL;
    size_t n, begin;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, NULL, NULL, &optimizer));
    view.ndim = 1;
    view.shape = extent;
    for (begin = 0; begin < 3; ++begin) {
        const char* text;
        for (n = 0; n + 1 < sizeof name; ++n) name[n] = n < begin ? '\n' : "\xe2\x82\xac"[(n - begin) % 3];
        name[begin + (sizeof name - 1 - begin) / 3 * 3] = '\0';
        EXPECT(flashoptim_add_parameter(optimizer, &view, name, 0, NULL, NULL) ==
               FLASHOPTIM_INVALID_ARGUMENT);
        text = flashoptim_last_error();
        n = strlen(text);
        EXPECT(n < FLASHOPTIM_MAX_ERROR_BYTES && n > FLASHOPTIM_MAX_ERROR_BYTES - 4);
        EXPECT(strchr(text, '\n') == NULL && text[0] == (begin > 0 ? ' ' : '\xe2') && text[n - 1] == '\xac');
    }
    view.data = weight;
    EXPECT_OK(flashoptim_add_parameter(optimizer, &view, name, 0, NULL, NULL));
    EXPECT_OK(flashoptim_destroy(optimizer));
}

int main(void) {
    test_structs_of_other_versions();
    test_the_last_step();
    test_texts_of_errors();
    if (failures != 0) fprintf(stderr, "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}

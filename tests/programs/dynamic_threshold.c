/*
 * dynamic_threshold [hold]: frees mapped chunks of growing and of falling sizes. Only a larger one than ever
 * before raises the threshold, and none above 32 MiB does. Each chunk's header says whether it was mapped,
 * the formula what its free does. `hold` waits at the end for standard input to close, its memory in place.
 */
#include "truth.h"

int main(int argc, char **argv) {
    static const size_t sizes[] = {131048, 131049,  150000,  140000,  300000,   200000,   1048576,  1048576,
                                   900000, 2000000, 8000000, 4000000, 16000000, 33000000, 33554432, 40000000};
    unsigned long mapped_at_once = 0;
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *p = t_malloc(sizes[i]);
        mapped_at_once += t_mapped_bytes(p) != 0;
        t_free(p);
    }
    /* realloc moves a mapping and gives it back without touching the threshold. */
    void *p = t_malloc(50000000);
    p = t_realloc(p, 60000000);
    t_free(p);
    t_require(t_raises >= 5, "the threshold hardly moved");
    t_fact("mapped", mapped_at_once);
    t_print("dynamic_threshold");
    char byte;
    if (argc > 1 && t_equal(argv[1], "hold"))
        while (read(0, &byte, 1) > 0)
            ;
    return 0;
}

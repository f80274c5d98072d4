/*
 * Requests that no argument rules out and the kernel refuses: more than a process can map unless it asks for
 * addresses above 2^47, which malloc never does. 192 TiB and 1 PiB: below and in the last bucket's open end.
 */
#include "truth.h"

int main(int argc, char **argv) {
    unsigned long times = argc > 1 ? t_parse(argv[1], 3) : 3;
    for (unsigned long i = 0; i < times; i++) {
        volatile size_t too_many = i % 2 ? 1UL << 50 : 0xC00000000000UL;
        void *p = t_malloc(1000);
        t_require(!t_malloc(too_many), "the kernel gave more than there is");
        t_require(!t_calloc(too_many / 16, 16), "the kernel gave more than there is");
        t_require(!t_realloc(p, too_many), "the kernel gave more than there is");
        t_free(p);
    }
    t_fact("refused", times * 3);
    t_print("refused");
    return 0;
}

/* Requests that no argument rules out and the kernel refuses: 192 TiB is more than a process can map. */
#include "truth.h"

int main(int argc, char **argv) {
    unsigned long times = argc > 1 ? t_parse(argv[1], 3) : 3;
    volatile size_t too_many = 0xC00000000000UL;
    for (unsigned long i = 0; i < times; i++) {
        void *p = t_malloc(1000);
        t_require(!t_malloc(too_many), "the kernel gave 192 TiB");
        t_require(!t_calloc(too_many / 16, 16), "the kernel gave 192 TiB");
        t_require(!t_realloc(p, too_many), "the kernel gave 192 TiB");
        t_free(p);
    }
    t_fact("refused", times * 3);
    t_print("refused");
    return 0;
}

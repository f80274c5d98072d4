/*
 * fallback [CHUNKS]: a page right behind the break, so that brk cannot grow and malloc takes whole regions
 * by mmap for chunks below the threshold. These are not crossings: no chunk is mapped on its own.
 */
#include "truth.h"
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

int main(int argc, char **argv) {
    /* 100 chunks of 4 KiB fit into the first region of 1 MiB. */
    unsigned long chunks = argc > 1 ? t_parse(argv[1], 100) : 100;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t behind = ((uintptr_t)sbrk(0) + page - 1) & ~(page - 1);
    void *wall = mmap((void *)behind, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    t_require(wall == (void *)behind, "no page behind the break");

    unsigned long regions = 0;
    uintptr_t region = 0;
    for (unsigned long i = 0; i < chunks; i++) {
        uintptr_t p = (uintptr_t)t_malloc(4000);
        t_require(p != 0, "malloc");
        if (region == 0 || p < region || p >= region + (1UL << 20)) {
            regions++;
            region = p & ~(page - 1);
        }
    }
    t_require(t_crossings.calls == 0, "a small chunk was mapped on its own");
    t_fact("fallback", regions);
    t_print("fallback");
    return 0;
}

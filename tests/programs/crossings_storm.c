/*
 * crossings_storm [K] [BYTES] [keep]: K chunks above a pinned threshold, so that malloc maps every one, of
 * BYTES and a little more each time; every third over-aligned, every fifth resized. `keep` holds all K
 * before the first is freed. Every mapping and its length is known from the chunk's own header.
 */
#include "truth.h"

/* malloc maps no more than 65536 chunks at a time. */
#define MOST 60000
static void *kept[MOST];

static void *allocate(unsigned long i, size_t bytes) {
    void *p;
    if (i % 3 == 2)
        p = t_memalign(8192, bytes);
    else if (i % 3 == 1)
        p = t_calloc(1, bytes);
    else
        p = t_malloc(bytes);
    t_require(t_mapped_bytes(p) != 0, "a chunk above the pinned threshold was not mapped");
    if (i % 5 == 4)
        p = t_realloc(p, bytes * 2);
    return p;
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? t_parse(argv[1], 1000) : 1000;
    size_t bytes = argc > 2 ? t_parse(argv[2], 65536) : 65536;
    int keep = argc > 3 && t_equal(argv[3], "keep");
    t_require(!keep || count <= MOST, "at most 60000 chunks are kept");
    /* Without its padding the top chunk is smaller than any request: it would serve the first ones itself. */
    mallopt(M_TOP_PAD, 0);
    t_pin_threshold((int)bytes);
    for (unsigned long i = 0; i < count; i++) {
        void *p = allocate(i, bytes + i % 64 * 1024);
        if (keep)
            kept[i] = p;
        else
            t_free(p);
    }
    for (unsigned long i = 0; keep && i < count; i++)
        t_free(kept[i]);
    t_require(t_crossings.calls == count && t_munmap_chunk == count, "K chunks, K mappings");
    t_print("crossings_storm");
    return 0;
}

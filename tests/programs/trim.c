/*
 * trim [MIB]: grows the heap with small chunks, then frees them from the last to the first, so that the top
 * shrinks again and again. The break before and after each call tells every growth and every trim.
 */
#include "truth.h"

/* Too big for the per-thread cache, which would hold on to the last chunks and keep the top from them. */
#define CHUNK 2000
#define MOST ((64UL << 20) / CHUNK)
static void *chunks[MOST];

int main(int argc, char **argv) {
    unsigned long mib = argc > 1 ? t_parse(argv[1], 32) : 32;
    unsigned long count = (mib << 20) / CHUNK;
    t_require(count <= MOST, "at most 64 MiB");
    unsigned long growths = 0, trims = 0, grown = 0, shrunk = 0;
    /* sbrk(0) only reads the libc's variable: no system call. */
    char *before = sbrk(0);
    for (unsigned long i = 0; i < count; i++) {
        chunks[i] = t_malloc(CHUNK);
        char *now = sbrk(0);
        growths += now > before;
        grown += (unsigned long)(now - before);
        before = now;
    }
    for (unsigned long i = count; i-- > 0;) {
        t_free(chunks[i]);
        char *now = sbrk(0);
        trims += now < before;
        shrunk += (unsigned long)(before - now);
        before = now;
    }
    t_require(trims > 0, "no trim");
    t_fact("growths", growths);
    t_fact("trims", trims);
    t_fact("grown_bytes", grown);
    t_fact("shrunk_bytes", shrunk);
    t_print("trim");
    return 0;
}

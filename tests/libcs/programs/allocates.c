/* Allocates in every way there is: what is linked with it holds all of the C library's malloc. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    void *blocks[6];
    blocks[0] = malloc(argc * 1000);
    blocks[1] = calloc(argc, 77);
    blocks[2] = realloc(malloc(argc), argc * 300000);
    blocks[3] = memalign(64, argc * 100);
    blocks[4] = aligned_alloc(128, argc * 256);
    if (posix_memalign(&blocks[5], 64, argc * 100) != 0)
        return 1;
    for (int at = 0; at < 6; at++) {
        printf("%s %d\n", argv[0], blocks[at] != NULL);
        free(blocks[at]);
    }
    return malloc_trim(0) < 0;
}

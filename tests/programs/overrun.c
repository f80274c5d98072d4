/*
 * overrun [MIB]: some calls, one block of so many MiB that is not touched yet, and the account of it all; then, for one byte
 * on standard input, the block is written from end to end: more memory than it may have, if whoever tells it so has set a
 * limit below. Ends with 3 when nobody kills it.
 */
#include "truth.h"
#include <string.h>

int main(int argc, char **argv) {
    size_t bytes = (size_t)(argc > 1 ? t_parse(argv[1], 256) : 256) << 20;
    for (size_t i = 0; i < 1000; i++) {
        void *p = t_malloc(i);
        if (i % 2)
            t_free(p);
    }
    char *block = t_malloc(bytes);
    t_require(block != NULL, "a block");
    t_print("overrun");
    char byte;
    while (read(0, &byte, 1) < 0 && errno == EINTR)
        ;
    memset(block, 1, bytes);
    return 3;
}

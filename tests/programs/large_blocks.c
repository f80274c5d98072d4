/*
 * large_blocks retain|churn: waits for a byte on standard input, works, prints its account and what the work cost it
 * (page faults, resident and free bytes at its end), and waits for standard input to close.
 *
 * retain: a large block raises the threshold; then rounds of large blocks with small ones between them, the large
 * ones freed, the small ones kept. churn: a few blocks above the threshold at a time, mapped and unmapped over and over.
 */
#include "truth.h"
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma weak mallinfo2

#define ROUNDS 12
#define BLOCKS 30
#define TURNS 4000
#define AT_ONCE 4

static unsigned long faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (unsigned long)usage.ru_minflt;
}

static unsigned long resident(void) {
    char text[256] = {0};
    int fd = open("/proc/self/statm", O_RDONLY);
    t_require(fd >= 0 && read(fd, text, sizeof text - 1) > 0, "statm");
    close(fd);
    char *second = strchr(text, ' ');
    return t_parse(second + 1, 0) * (unsigned long)sysconf(_SC_PAGESIZE);
}

static void *touched(unsigned long size) {
    char *block = t_malloc(size);
    t_require(block != NULL, "no memory");
    memset(block, 1, size);
    return block;
}

static void retain(void) {
    static void *large[BLOCKS];
    unsigned long seed = 7;
    t_free(touched(9000000));
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < BLOCKS; i++) {
            large[i] = touched(150000 + t_next(&seed) % 800000);
            /* Never freed. */
            touched(2000);
        }
        for (int i = 0; i < BLOCKS; i++)
            t_free(large[i]);
    }
}

static void churn(void) {
    static void *large[AT_ONCE];
    unsigned long seed = 11;
    for (int turn = 0; turn < TURNS; turn++) {
        int at = turn % AT_ONCE;
        if (large[at])
            t_free(large[at]);
        large[at] = touched(140000 + t_next(&seed) % 200000);
    }
    for (int at = 0; at < AT_ONCE; at++)
        t_free(large[at]);
}

int main(int argc, char **argv) {
    char byte;
    t_require(argc > 1, "retain or churn");
    t_write(1, "!", 1);
    t_require(read(0, &byte, 1) == 1, "no start");
    unsigned long before = faults();
    if (t_equal(argv[1], "retain"))
        retain();
    else
        churn();
    t_fact("faults", faults() - before);
    t_fact("resident_bytes", resident());
    t_fact("free_bytes", mallinfo2 ? mallinfo2().fordblks : (unsigned)mallinfo().fordblks);
    t_print("large_blocks");
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}

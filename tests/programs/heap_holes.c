/*
 * heap_holes [THREADS]: a heap with holes in it, and THREADS arenas of their own with holes in theirs. Then, with every
 * thread at rest, it prints what glibc itself says: malloc_info's bytes of each arena in its order, mallinfo2's free
 * bytes and mapped chunks; and waits for standard input to close, everything in place.
 */
#include "truth.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* It came with glibc 2.33: older ones run this too. */
#pragma weak mallinfo2
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define MOST 16
#define BLOCKS 400

static pthread_barrier_t done, over;

/* Blocks of many sizes, every other one freed: some fill the thread's cache, some fastbins, some come together. */
static void holes(unsigned long seed) {
    static __thread void *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = t_malloc(24 + t_next(&seed) % (i % 4 ? 300 : 9000));
    for (int i = 0; i < BLOCKS; i += 2)
        t_free(blocks[i]);
    for (int i = 1; i < BLOCKS; i += 10)
        t_free(blocks[i]);
    /* One request sorts what lies unsorted into its bins; the next frees leave some unsorted again. */
    t_malloc(5000);
    for (int i = 3; i < BLOCKS; i += 20)
        t_free(blocks[i]);
}

static void *work(void *argument) {
    holes((unsigned long)(uintptr_t)argument);
    pthread_barrier_wait(&done);
    pthread_barrier_wait(&over);
    return NULL;
}

static unsigned long after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    t_require(at != NULL, "malloc_info says something else");
    return t_parse(at + strlen(key), 0);
}

int main(int argc, char **argv) {
    static char info[1 << 20], buffer[1 << 16];
    unsigned long threads = argc > 1 ? t_parse(argv[1], 3) : 3;
    t_require(threads < MOST, "at most 15 threads");
    /* Opened before anything is measured: streams allocate. */
    FILE *report = tmpfile();
    t_require(report != NULL, "tmpfile");
    setvbuf(report, buffer, _IOFBF, sizeof buffer);
    pthread_t ids[MOST];
    pthread_barrier_init(&done, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&over, NULL, (unsigned)threads + 1);
    for (unsigned long i = 0; i < threads; i++)
        t_require(!pthread_create(&ids[i], NULL, work, (void *)(uintptr_t)(i + 1)), "pthread_create");
    holes(99);
    char *mapped = t_malloc(3000000);
    memset(mapped, 1, 3000000);
    pthread_barrier_wait(&done);

    malloc_info(0, report);
    fflush(report);
    rewind(report);
    size_t length = 0, got;
    while ((got = read(fileno(report), info + length, sizeof info - 1 - length)) > 0)
        length += got;
    size_t fordblks, keepcost, hblks, hblkhd;
    if (mallinfo2) {
        struct mallinfo2 all = mallinfo2();
        fordblks = all.fordblks, keepcost = all.keepcost, hblks = all.hblks, hblkhd = all.hblkhd;
    } else {
        struct mallinfo all = mallinfo();
        fordblks = (unsigned)all.fordblks, keepcost = (unsigned)all.keepcost;
        hblks = (unsigned)all.hblks, hblkhd = (unsigned)all.hblkhd;
    }
    char line[8192];
    int at = snprintf(line, sizeof line, "{\"pid\":%d,\"fordblks\":%zu,\"keepcost\":%zu,\"hblks\":%zu,\"hblkhd\":%zu,\"arenas\":[",
                      (int)getpid(), fordblks, keepcost, hblks, hblkhd);
    char *heap = info;
    for (int nth = 0; (heap = strstr(heap, "<heap nr=")) != NULL; nth++) {
        char *end = strstr(heap, "</heap>");
        t_require(end != NULL, "malloc_info says something else");
        *end = 0;
        at += snprintf(line + at, sizeof line - (size_t)at, "%s{\"system\":%lu,\"max\":%lu}", nth ? "," : "",
                       after(heap, "<system type=\"current\" size=\""), after(heap, "<system type=\"max\" size=\""));
        heap = end + 1;
    }
    at += snprintf(line + at, sizeof line - (size_t)at, "]}\n");
    t_write(1, line, (size_t)at);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}

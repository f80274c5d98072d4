/*
 * mapped_chunks [T] [N] [BYTES] [hold|before|once]: T threads map N chunks each, above a pinned threshold, and touch some pages of
 * each. Of every eight, one is kept for more than a second, one is never freed, one is resized before it is freed and
 * one is freed by the next thread; the rest is freed at once. Lifetimes are known by clock: one that cannot be told from
 * a second ends the program. `hold` waits at the end for standard input to close. `before` maps N chunks, says so, waits
 * for a byte on standard input, begins a new account, frees them, and then does as above. With `once` each thread
 * frees (some resized) what it mapped before it maps the next: no more than T chunks are mapped at a time.
 *
 * Page faults of chunks are what the kernel counted for the thread between the call that maps and the one that frees.
 */
#include "truth.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#define MOST_THREADS 16
#define MOST 20000
#define SECOND 1000000000UL

struct chunk {
    void *memory;
    unsigned long before_map;
    unsigned long after_map;
};

static struct chunk kept[MOST_THREADS][MOST / 8 + 1], passed[MOST_THREADS][MOST / 8 + 1];
static unsigned long ended, churned, churned_bytes, left, faults_now, faults_all;
static unsigned long count, bytes, threads, unknown;
static pthread_barrier_t all_mapped;
static int once;

static unsigned long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return (unsigned long)time.tv_sec * SECOND + (unsigned long)time.tv_nsec;
}

static unsigned long faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (unsigned long)usage.ru_minflt + (unsigned long)usage.ru_majflt;
}

static void release(struct chunk *chunk) {
    unsigned long mapped = t_mapped_bytes(chunk->memory), before = now();
    t_free(chunk->memory);
    unsigned long after = now();
    t_add(&ended, 1);
    if (after - chunk->before_map < SECOND) {
        t_add(&churned, 1);
        t_add(&churned_bytes, mapped);
    } else {
        t_require(before - chunk->after_map >= SECOND, "a lifetime too near to a second");
    }
}

static struct chunk map(unsigned long i, unsigned long *taken) {
    unsigned long before = faults();
    struct chunk chunk = {.before_map = now()};
    chunk.memory = i % 3 ? t_malloc(bytes + i % 7 * 4096) : t_memalign(8192, bytes);
    chunk.after_map = now();
    t_require(t_mapped_bytes(chunk.memory) != 0, "a chunk above the pinned threshold was not mapped");
    for (unsigned long page = 0; page < i % 16; page++)
        ((volatile char *)chunk.memory)[page * 4096] = 1;
    *taken = faults() - before;
    return chunk;
}

static void *work(void *argument) {
    unsigned long self = (unsigned long)(uintptr_t)argument, kept_count = 0, taken = 0;
    /* A thread's arena has room for the request that made it; and its stack must not take faults between. */
    t_free(t_malloc(16));
    volatile char deep[32768];
    for (unsigned at = 0; at < sizeof deep; at += 1024)
        deep[at] = 0;
    now(), faults();
    for (unsigned long i = 0; i < count; i++) {
        struct chunk chunk = map(i, &taken);
        t_add(&faults_all, taken);
        switch (once && i % 8 != 5 ? 0 : i % 8) {
        case 1:
            kept[self][kept_count++] = chunk;
            break;
        case 3:
            t_add(&left, 1);
            break;
        case 5:
            chunk.memory = t_realloc(chunk.memory, 2 * bytes + i % 11 * 4096);
            release(&chunk);
            break;
        case 7:
            passed[self][i / 8] = chunk;
            break;
        default:
            t_add(&faults_now, taken);
            release(&chunk);
        }
    }
    pthread_barrier_wait(&all_mapped);
    if (once)
        return NULL;
    unsigned long next = (self + 1) % threads;
    for (unsigned long i = 0; i < MOST / 8; i++) {
        if (passed[next][i].memory)
            release(&passed[next][i]);
    }
    usleep(1100000);
    for (unsigned long i = 0; i < kept_count; i++)
        release(&kept[self][i]);
    return NULL;
}

static void before(void) {
    static void *old[MOST];
    for (unsigned long i = 0; i < count; i++)
        old[i] = t_malloc(bytes);
    t_print("mapped_chunks");
    char byte;
    t_require(read(0, &byte, 1) == 1, "a byte to go on");
    t_reset();
    for (unsigned long i = 0; i < count; i++)
        t_free(old[i]);
    unknown = count;
}

int main(int argc, char **argv) {
    threads = argc > 1 ? t_parse(argv[1], 2) : 2;
    count = argc > 2 ? t_parse(argv[2], 400) : 400;
    bytes = argc > 3 ? t_parse(argv[3], 200000) : 200000;
    t_require(threads >= 1 && threads <= MOST_THREADS && count <= MOST, "1 to 16 threads, at most 20000 chunks each");
    mallopt(M_TOP_PAD, 0);
    t_pin_threshold((int)bytes);
    if (argc > 4 && t_equal(argv[4], "before"))
        before();
    once = argc > 4 && t_equal(argv[4], "once");
    pthread_t started[MOST_THREADS];
    /* Pages of code and data that are used for the first time would count with a chunk. */
    t_require(!mlockall(MCL_CURRENT), "mlockall");
    pthread_barrier_init(&all_mapped, NULL, (unsigned)threads);
    for (unsigned long i = 1; i < threads; i++)
        t_require(!pthread_create(&started[i], NULL, work, (void *)(uintptr_t)i), "pthread_create");
    work((void *)0);
    for (unsigned long i = 1; i < threads; i++)
        pthread_join(started[i], NULL);
    t_require(t_crossings.calls == threads * count && t_munmap_chunk == ended + unknown, "N chunks of each thread");
    t_fact("ended", ended);
    t_fact("churned", churned);
    t_fact("churned_bytes", churned_bytes);
    t_fact("left", left);
    t_fact("unknown", unknown);
    t_fact("faults", faults_all);
    t_fact("faults_freed_at_once", faults_now);
    t_print("mapped_chunks");
    char byte;
    if (argc > 4 && t_equal(argv[4], "hold"))
        while (read(0, &byte, 1) > 0)
            ;
    return 0;
}

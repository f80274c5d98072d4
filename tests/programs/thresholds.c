/*
 * thresholds WAY: moves the mmap threshold, or fails to, and says where it must stand and which frees raised it.
 *
 *   series                chunks of rising and falling sizes
 *   mallopt PARAMETER N   the same after mallopt; PARAMETER is mmap_threshold, trim_threshold, top_pad or mmap_max
 *   outside PARAMETER N   the same where the environment has set the parameter
 *   refused_value N       the same after a threshold that this libc may refuse to set
 *   most N                more chunks at once than may be mapped
 *   wall                  a heap that cannot grow, between chunks that are mapped
 *   realloc               mapped chunks that are resized, and freed by realloc
 *   aligned               aligned requests over the threshold
 *   threads N             N threads at a time, each in turn, in arenas of their own; what one maps the next one frees
 *   beyond                in a thread: blocks below the threshold that are larger than an arena's heap
 *   fork                  a child that first frees what it was forked with
 *   steps                 a line of the account for each byte read: r raises, k keeps a chunk larger than any before,
 *                         f frees it, z is a new start of the account
 */
#include "truth.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static unsigned long trim = 128 * 1024;
/* Chunks mapped below the threshold, because no heap has room for them. */
static unsigned long below;

#define RAISES 12
static unsigned long raised_to[RAISES];

/* A free, and what it raised. */
static void drop(void *pointer) {
    unsigned long before = t_raises;
    t_free(pointer);
    if (t_raises != before) {
        t_require(t_raises <= RAISES, "more raises than are kept");
        raised_to[before] = t_threshold;
        trim = 2 * t_threshold;
    }
}

static void account(void) {
    static const char *const names[RAISES] = {"raise_1", "raise_2", "raise_3", "raise_4",  "raise_5",  "raise_6",
                                              "raise_7", "raise_8", "raise_9", "raise_10", "raise_11", "raise_12"};
    t_fact_count = 0;
    t_fact("trim", trim);
    t_fact("below", below);
    for (unsigned long i = 0; i < t_raises; i++)
        t_fact(names[i], raised_to[i]);
    t_print("thresholds");
}

static void series(void) {
    static const size_t sizes[] = {131048,  131049, 200000,  150000,   1048576,
                                   600000, 3000000, 2000000, 12000000, 33554432};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        drop(t_malloc(sizes[i]));
}

static int parameter(const char *name) {
    return t_equal(name, "mmap_threshold")   ? M_MMAP_THRESHOLD
           : t_equal(name, "trim_threshold") ? M_TRIM_THRESHOLD
           : t_equal(name, "top_pad")        ? M_TOP_PAD
           : t_equal(name, "mmap_max")       ? M_MMAP_MAX
                                             : 0;
}

/* Each of the four ends the dynamic rule, whoever sets it. */
static void model(int which, unsigned long value) {
    t_threshold_pinned = 1;
    if (which == M_MMAP_THRESHOLD)
        t_threshold = value;
    if (which == M_TRIM_THRESHOLD)
        trim = value;
}

static void many(unsigned long count, size_t bytes) {
    static void *held[512];
    t_require(count <= 512, "512 chunks at most");
    for (unsigned long i = 0; i < count; i++)
        held[i] = t_malloc(bytes);
    for (unsigned long i = 0; i < count; i++)
        drop(held[i]);
}

static void wall(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    drop(t_malloc(1000000));
    uintptr_t behind = ((uintptr_t)sbrk(0) + page - 1) & ~(page - 1);
    void *refused = mmap((void *)behind, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    t_require(refused == (void *)behind, "a page behind the break");
    unsigned long before = t_crossings.calls;
    /* Below the threshold, and more than the heap has. */
    void *held[12];
    for (unsigned i = 0; i < 12; i++)
        held[i] = t_malloc(900000);
    t_require(t_crossings.calls == before, "a region was mapped, and no chunk");
    drop(t_malloc(2000000));
    for (unsigned i = 0; i < 12; i++)
        drop(held[i]);
    many(3, 5000000);
}

static pthread_barrier_t turn;
static void *passed_on;
static unsigned long thread_count;

static void *thread(void *argument) {
    unsigned long own = (unsigned long)(uintptr_t)argument;
    void *small = t_malloc(2000);
    for (unsigned long now = 0; now < thread_count; now++) {
        pthread_barrier_wait(&turn);
        if (now != own)
            continue;
        size_t bytes = 300000 * (own + 1);
        void *large = t_malloc(bytes), *larger = t_malloc(2 * bytes);
        drop(passed_on);
        drop(large);
        passed_on = larger;
    }
    pthread_barrier_wait(&turn);
    t_free(small);
    return NULL;
}

static void threads(unsigned long count) {
    pthread_t ids[16];
    t_require(count <= 16 && !pthread_barrier_init(&turn, NULL, (unsigned)count), "threads");
    thread_count = count;
    for (unsigned long i = 0; i < count; i++)
        t_require(!pthread_create(&ids[i], NULL, thread, (void *)(uintptr_t)i), "pthread_create");
    for (unsigned long i = 0; i < count; i++)
        pthread_join(ids[i], NULL);
    drop(passed_on);
}

static void *beyond(void *argument) {
    (void)argument;
    void *small = t_malloc(2000);
    for (size_t megabytes = 70; megabytes < 100; megabytes += 10) {
        void *p = malloc(megabytes << 20);
        t_count_malloc(megabytes << 20);
        t_require(t_mapped_bytes(p) != 0, "a chunk that no heap holds is mapped");
        below++;
        drop(p);
    }
    t_free(small);
    return NULL;
}

static void resized(void) {
    char *p = t_malloc(1000000);
    p = t_realloc(p, 5000000);
    p = t_realloc(p, 20000000);
    p = t_realloc(p, 1000); /* still mapped, a single page: its free raises nothing */
    drop(p);
    p = t_realloc(NULL, 300000);
    p = t_realloc(p, 200000);
    drop(p);
    p = t_realloc(t_malloc(100000), 700000); /* out of the heap */
    p = t_realloc(p, 900000);
    drop(p); /* as large as it is now */
    p = t_calloc(3, 400000);
    drop(t_realloc(p, 1300000));
    p = t_malloc(6000000);
    unsigned long before = t_raises;
    p = t_realloc(p, 0); /* a free like any other */
    t_require(!p && t_raises == before + 1, "realloc to nothing frees");
    raised_to[before] = t_threshold;
    trim = 2 * t_threshold;
}

static void aligned(void) {
    static const size_t alignments[] = {64, 4096, 65536, 1UL << 21};
    for (unsigned i = 0; i < 4; i++) {
        drop(t_memalign(alignments[i], 200000 * (i + 1)));
        drop(t_posix_memalign(alignments[i], 250000 * (i + 1)));
        drop(t_aligned_alloc(alignments[i], alignments[i] * 8 + 400000));
    }
    drop(t_valloc(18000000));
    drop(t_pvalloc(19000001));
}

static void forked(void) {
    drop(t_malloc(1000000));
    void *kept = t_malloc(4000000);
    pid_t child = fork();
    if (child == 0) {
        t_reset();
        drop(kept);
        drop(t_malloc(2000000));
        drop(t_malloc(9000000));
        account();
        _exit(0);
    }
    waitpid(child, NULL, 0);
    drop(t_malloc(2000000));
    drop(kept);
}

static void steps(void) {
    size_t bytes = 100000;
    void *kept = NULL;
    char step;
    account();
    while (read(0, &step, 1) == 1) {
        if (step == 'r' || step == 'k')
            bytes *= 2;
        if (step == 'r')
            drop(t_malloc(bytes));
        else if (step == 'k')
            kept = t_malloc(bytes);
        else if (step == 'f')
            drop(kept);
        else
            t_reset();
        account();
    }
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "series";
    const char *name = argc > 2 ? argv[2] : "";
    unsigned long number = argc > 3 ? t_parse(argv[3], 0) : t_parse(argc > 2 ? argv[2] : NULL, 4);
    if (t_equal(way, "mallopt")) {
        drop(t_malloc(150000));
        t_require(parameter(name) && mallopt(parameter(name), (int)number), "mallopt");
        model(parameter(name), number);
        series();
        many(12, 1 << 20);
    } else if (t_equal(way, "outside")) {
        model(parameter(name), number);
        series();
        many(12, 1 << 20);
    } else if (t_equal(way, "refused_value")) {
        if (mallopt(M_MMAP_THRESHOLD, (int)number))
            model(M_MMAP_THRESHOLD, number);
        series();
    } else if (t_equal(way, "most")) {
        t_require(mallopt(M_MMAP_MAX, (int)number), "mallopt");
        model(M_MMAP_MAX, number);
        many(3 * number, 1 << 20);
        t_require(t_crossings.calls == number, "as many are mapped as may be");
    } else if (t_equal(way, "wall")) {
        wall();
    } else if (t_equal(way, "realloc")) {
        resized();
    } else if (t_equal(way, "aligned")) {
        aligned();
    } else if (t_equal(way, "threads")) {
        threads(number);
    } else if (t_equal(way, "beyond")) {
        pthread_t one;
        t_require(mallopt(M_MMAP_THRESHOLD, 1 << 30), "mallopt");
        model(M_MMAP_THRESHOLD, 1 << 30);
        t_require(!pthread_create(&one, NULL, beyond, NULL), "pthread_create");
        pthread_join(one, NULL);
    } else if (t_equal(way, "fork")) {
        forked();
    } else if (t_equal(way, "steps")) {
        steps();
        return 0;
    } else
        series();
    account();
    return 0;
}

/*
 * Every public function, with what it serves from the cache, from the arena and from its own mapping,
 * with its other names, and with every argument that no heap can satisfy. `functions public` leaves
 * the other names out: a preloaded library does not see them.
 */
#include "truth.h"

/* Volatile: the compiler must not see that some of these requests are absurd. */
static volatile size_t huge = PTRDIFF_MAX;
static volatile size_t most = SIZE_MAX;
static volatile size_t zero = 0;

/* Other names of the same code. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);

/* C23, exported from glibc 2.43 on. */
extern void free_sized(void *, size_t) __attribute__((weak));
extern void free_aligned_sized(void *, size_t, size_t) __attribute__((weak));

static void successes(void) {
    static const size_t sizes[] = {0, 1, 24, 25, 64, 1032, 1033, 2000, 40000, 131048, 131049, 1048576, 5000000};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        t_free(t_malloc(n));
        t_free(t_calloc(1, n));
        t_free(t_calloc(n, 3));
        t_free(t_realloc(NULL, n));
        t_free(t_reallocarray(NULL, n, 2));
        t_free(t_valloc(n));
        t_free(t_pvalloc(n));
        for (size_t alignment = 8; alignment <= 65536; alignment *= 8) {
            t_free(t_memalign(alignment, n));
            t_free(t_aligned_alloc(alignment, n));
            t_free(t_posix_memalign(alignment, n));
        }
        t_free(t_memalign(0, n));
        t_free(t_memalign(48, n));
        t_free(t_aligned_alloc(48, n));
    }
    t_free(t_calloc(most, zero));
    t_free(t_calloc(zero, most));
}

static void reallocations(void) {
    /* Within the usable size, then in place into the top chunk, then shrinking. */
    void *p = t_malloc(100);
    p = t_realloc(p, 104);
    p = t_realloc(p, 3000);
    p = t_realloc(p, 50);
    /* A neighbour forces the next growth out of place. */
    void *neighbour = t_malloc(64);
    p = t_realloc(p, 9000);
    p = t_reallocarray(p, 30, 400);
    t_free(neighbour);
    /* realloc(p, 0) frees. */
    t_require(t_realloc(p, zero) == NULL, "realloc(p, 0) returned memory");

    /* A chunk with a mapping of its own: mremap up, down, and not at all. 40 MiB is above every threshold. */
    p = t_malloc(40 << 20);
    p = t_realloc(p, 48 << 20);
    p = t_realloc(p, (48 << 20) + 8);
    p = t_realloc(p, 41 << 20);
    p = t_reallocarray(p, 42, 1 << 20);
    t_free(p);

    /* From the heap into a mapping of its own. */
    p = t_malloc(200);
    neighbour = t_malloc(200);
    p = t_realloc(p, 50 << 20);
    t_free(p);
    t_free(neighbour);
}

static void failures(void) {
    void *kept = t_malloc(500);
    t_require(!t_malloc(huge) && !t_malloc(most), "malloc");
    t_require(!t_calloc(1UL << 33, 1UL << 33) && !t_calloc(huge, 1) && !t_calloc(3, most / 2), "calloc");
    t_require(!t_realloc(kept, huge) && !t_realloc(NULL, most), "realloc");
    t_require(!t_reallocarray(kept, most, 2) && !t_reallocarray(NULL, 1UL << 32, 1UL << 32), "reallocarray overflow");
    t_require(!t_reallocarray(kept, huge, 1), "reallocarray");
    t_require(!t_memalign(64, huge) && !t_memalign(1UL << 63, 64), "memalign");
    t_require(!t_aligned_alloc(64, huge), "aligned_alloc");
    t_require(!t_posix_memalign(3, 64) && !t_posix_memalign(4, 64) && !t_posix_memalign(zero, 64), "posix_memalign");
    t_require(!t_posix_memalign(48, 64) && !t_posix_memalign(64, huge), "posix_memalign");
    t_require(!t_valloc(huge) && !t_valloc(most) && !t_pvalloc(huge) && !t_pvalloc(most), "valloc");
    t_free(NULL);
    t_free(NULL);
    t_free(kept);
}

static void other_names(void) {
    t_count_malloc(77);
    void *p = __libc_malloc(77);
    t_count_realloc(99);
    p = __libc_realloc(p, 99);
    t_count_free(p);
    __libc_free(p);
    t_count_calloc(5, 5);
    p = __libc_calloc(5, 5);
    t_count_free(p);
    __libc_free(p);
    t_count_memalign(256, 300);
    p = __libc_memalign(256, 300);
    t_free(p);
    if (free_sized && free_aligned_sized) {
        p = t_malloc(123);
        t_count_free(p);
        free_sized(p, 123);
        p = t_aligned_alloc(64, 128);
        t_count_free(p);
        free_aligned_sized(p, 64, 128);
    }
}

int main(int argc, char **argv) {
    successes();
    reallocations();
    failures();
    if (argc < 2 || !t_equal(argv[1], "public"))
        other_names();
    t_print("functions");
    return 0;
}

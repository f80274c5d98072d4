/*
 * portable [alias] [new] [multiply] [refused] [wait]: what every allocator has, within what all of them agree on:
 * alignments are powers of two, and what one function gave only free() and realloc() of the same allocator take.
 * `alias`: aligned_alloc is memalign's address. `new`: C++'s operators by their linker names, which an allocator that
 * brings them serves itself. `multiply`: reallocarray. `wait`: answers `.` and waits for a byte before the calls.
 */
#define T_FOREIGN
#include "truth.h"

static volatile size_t huge = PTRDIFF_MAX;

#ifdef T_OPERATORS
extern void *_Znwm(size_t);
extern void *_Znam(size_t);
extern void *_ZnwmRKSt9nothrow_t(size_t, const void *);
extern void *_ZnwmSt11align_val_t(size_t, size_t);
extern void _ZdlPv(void *);
extern void _ZdaPv(void *);
extern void _ZdlPvm(void *, size_t);
extern void _ZdlPvSt11align_val_t(void *, size_t);
extern void _ZdlPvmSt11align_val_t(void *, size_t, size_t);

static void *noted(void *p, size_t size) {
    t_count_malloc(size);
    return p;
}

/* libstdc++ passes a multiple of the alignment on to aligned_alloc; allocators with operators of their own do not. */
static void *aligned(size_t size) {
#ifdef T_GLIBC_OPERATORS
    t_count_aligned_alloc(64, (size + 63) / 64 * 64);
#else
    t_count_malloc(size);
#endif
    return _ZnwmSt11align_val_t(size, 64);
}

static void operators(void) {
    for (size_t size = 1; size < 100000; size = size * 3 + 1) {
        void *p = noted(_Znwm(size), size);
        t_count_free(p);
        _ZdlPv(p);
        p = noted(_Znam(size), size);
        t_count_free(p);
        _ZdaPv(p);
        p = noted(_ZnwmRKSt9nothrow_t(size, ""), size);
        t_count_free(p);
        _ZdlPvm(p, size);
        p = aligned(size);
        t_count_free(p);
        _ZdlPvSt11align_val_t(p, 64);
        p = aligned(size);
        t_count_free(p);
        _ZdlPvmSt11align_val_t(p, size, 64);
    }
}
#else
static void operators(void) { t_require(0, "compiled without operators"); }
#endif

static void family(int multiply) {
    for (size_t size = 1; size <= 9000000; size = size * 2 + size / 3 + 1) {
        t_free(t_malloc(size));
        t_free(t_calloc(1, size));
        t_free(t_calloc(size, 3));
        t_free(t_realloc(NULL, size));
        t_free(t_valloc(size));
        for (size_t alignment = sizeof(void *); alignment <= 65536; alignment *= 8) {
            t_free(t_memalign(alignment, size));
            t_free(t_aligned_alloc(alignment, size));
            t_free(t_posix_memalign(alignment, size));
        }
        void *p = t_malloc(size);
        p = t_realloc(p, size + 8);
        p = t_realloc(p, size * 4);
        p = t_realloc(p, size / 2 + 1);
        if (multiply)
            p = t_reallocarray(p, size, 2);
        t_free(p);
    }
    t_free(NULL);
}

static void refused(void) {
    void *kept = t_malloc(500);
    t_require(!t_malloc(huge), "malloc");
    t_require(!t_calloc(1UL << 33, 1UL << 33) && !t_calloc(3, huge), "calloc");
    t_require(!t_realloc(kept, huge) && !t_realloc(NULL, huge), "realloc");
    t_free(kept);
}

int main(int argc, char **argv) {
    int multiply = 0, with_operators = 0, with_refused = 0;
    for (int i = 1; i < argc; i++) {
        t_aligned_alloc_is_memalign |= t_equal(argv[i], "alias");
        multiply |= t_equal(argv[i], "multiply");
        with_operators |= t_equal(argv[i], "new");
        with_refused |= t_equal(argv[i], "refused");
        if (t_equal(argv[i], "wait")) {
            char byte = '.';
            t_write(1, &byte, 1);
            t_require(read(0, &byte, 1) == 1, "no byte to go on");
        }
    }
    family(multiply);
    if (with_refused)
        refused();
    if (with_operators)
        operators();
    t_print("portable");
    return 0;
}

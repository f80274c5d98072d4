/*
 * What a victim program knows about its own allocations: wrappers that count and then call, and one
 * line of JSON at the end.
 *
 * Everything here is static data and plain system calls: the account must not allocate, or it would
 * change what it accounts for. Counters are atomic because threads and signal handlers share them.
 *
 * The rules are those of the promise in docs/api.md: outermost calls, requested bytes, calls that
 * cannot succeed by their arguments only under "failed", free(NULL) nowhere.
 */
#ifndef TRUTH_H
#define TRUTH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

/*
 * A victim that defines T_FOREIGN may be served by any allocator: it does not look at the headers of glibc's chunks, so
 * its account has no crossings and no threshold, and it says itself whether aligned_alloc is memalign's address.
 */

#define T_UNUSED __attribute__((unused))

enum {
    T_MALLOC,
    T_CALLOC,
    T_REALLOC,
    T_MEMALIGN,
    T_ALIGNED_ALLOC,
    T_POSIX_MEMALIGN,
    T_VALLOC,
    T_PVALLOC,
    T_FREE,
    T_FUNCTIONS
};

static const char *const t_names[T_FUNCTIONS] = {"malloc",         "calloc", "realloc", "memalign", "aligned_alloc",
                                                 "posix_memalign", "valloc", "pvalloc", "free"};

/* No process has so many bytes; a request above it fails whatever the heap holds. */
#define T_IMPOSSIBLE_BYTES (1UL << 56)

/* 0..3 exactly, then four buckets for each power of two from 2^2 to 2^47; the last holds all above as well. */
#define T_BUCKETS (4 + (47 - 2 + 1) * 4)

struct t_row {
    unsigned long calls;
    unsigned long bytes;
    unsigned long failed;
    unsigned long sizes[T_BUCKETS];
};

static struct t_row t_rows[T_FUNCTIONS];
/* Chunks that malloc mapped one by one; sizes are mapped lengths. */
static struct t_row t_crossings;
static unsigned long t_munmap_chunk;
static unsigned long t_mremap_chunk;

/* The rule by which free() of a mapped chunk moves the threshold; exact for one thread. */
static unsigned long t_threshold = 128 * 1024;
static unsigned long t_raises;
static int t_threshold_pinned;

struct t_fact {
    const char *name;
    unsigned long value;
};
#define T_FACTS 16
static struct t_fact t_facts[T_FACTS];
static unsigned t_fact_count;

static inline void t_add(unsigned long *counter, unsigned long amount) {
    __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
}

/* A number of the victim's own, printed under "facts". */
static T_UNUSED void t_fact(const char *name, unsigned long value) {
    if (t_fact_count < T_FACTS) {
        t_facts[t_fact_count].name = name;
        t_facts[t_fact_count].value = value;
        t_fact_count++;
    }
}

/* What follows belongs to another process: a forked child starts from nothing. */
static T_UNUSED void t_reset(void) {
    for (int f = 0; f < T_FUNCTIONS; f++)
        t_rows[f] = (struct t_row){0};
    t_crossings = (struct t_row){0};
    t_munmap_chunk = t_mremap_chunk = t_raises = 0;
    t_fact_count = 0;
}

/* ---- histogram ---- */

static inline unsigned t_bucket(unsigned long value) {
    if (value < 4)
        return (unsigned)value;
    unsigned exponent = 63 - (unsigned)__builtin_clzl(value);
    unsigned bucket = 4 + (exponent - 2) * 4 + (unsigned)((value >> (exponent - 2)) & 3);
    return bucket < T_BUCKETS ? bucket : T_BUCKETS - 1;
}

static inline unsigned long t_bucket_lo(unsigned bucket) {
    if (bucket < 4)
        return bucket;
    unsigned shift = (bucket - 4) / 4;
    return (4UL + (bucket - 4) % 4) << shift;
}

static inline unsigned long t_bucket_hi(unsigned bucket) {
    if (bucket < 4)
        return bucket;
    if (bucket == T_BUCKETS - 1)
        return ~0UL;
    return t_bucket_lo(bucket) + (1UL << ((bucket - 4) / 4)) - 1;
}

static inline void t_note(struct t_row *row, unsigned long bytes) {
    t_add(&row->calls, 1);
    t_add(&row->bytes, bytes);
    t_add(&row->sizes[t_bucket(bytes)], 1);
}

/* ---- which requests can succeed ---- */

static inline int t_power_of_two(unsigned long value) { return value != 0 && (value & (value - 1)) == 0; }

#ifdef T_FOREIGN
static int t_aligned_alloc_is_memalign;
#else
/* The minor version of glibc 2.x that runs this program. */
static inline int t_glibc(void) {
    const char *text = gnu_get_libc_version();
    int minor = 0;
    while (*text && *text != '.')
        text++;
    if (*text == '.')
        text++;
    while (*text >= '0' && *text <= '9')
        minor = minor * 10 + (*text++ - '0');
    return minor;
}

#endif

/* Up to glibc 2.37 aligned_alloc is memalign's address and rounds odd alignments up. */
static inline int t_aligned_alloc_row(void) {
#ifdef T_FOREIGN
    return t_aligned_alloc_is_memalign ? T_MEMALIGN : T_ALIGNED_ALLOC;
#else
    return t_glibc() >= 38 ? T_ALIGNED_ALLOC : T_MEMALIGN;
#endif
}

static inline void t_request(int function, int possible, unsigned long bytes) {
    if (possible && bytes <= T_IMPOSSIBLE_BYTES)
        t_note(&t_rows[function], bytes);
    else
        t_add(&t_rows[function].failed, 1);
}

static inline void t_count_malloc(size_t size) { t_request(T_MALLOC, 1, size); }

static inline void t_count_calloc(size_t nmemb, size_t size) {
    unsigned long bytes = 0;
    int overflow = __builtin_mul_overflow(nmemb, size, &bytes);
    t_request(T_CALLOC, !overflow, bytes);
}

static inline void t_count_realloc(size_t size) { t_request(T_REALLOC, 1, size); }

/* An overflowing reallocarray never reaches realloc. */
static inline void t_count_reallocarray(size_t nmemb, size_t size) {
    unsigned long bytes = 0;
    if (!__builtin_mul_overflow(nmemb, size, &bytes))
        t_count_realloc(bytes);
}

static inline void t_count_memalign(size_t alignment, size_t size) {
    t_request(T_MEMALIGN, alignment <= T_IMPOSSIBLE_BYTES, size);
}

static inline void t_count_aligned_alloc(size_t alignment, size_t size) {
    int row = t_aligned_alloc_row();
    int possible = alignment <= T_IMPOSSIBLE_BYTES && (row == T_MEMALIGN || t_power_of_two(alignment));
    t_request(row, possible, size);
}

static inline void t_count_posix_memalign(size_t alignment, size_t size) {
    t_request(T_POSIX_MEMALIGN, t_power_of_two(alignment) && alignment >= sizeof(void *) && alignment <= T_IMPOSSIBLE_BYTES,
              size);
}

static inline void t_count_valloc(size_t size) { t_request(T_VALLOC, 1, size); }
static inline void t_count_pvalloc(size_t size) { t_request(T_PVALLOC, 1, size); }

static inline void t_count_free(const void *pointer) {
    if (pointer)
        t_add(&t_rows[T_FREE].calls, 1);
}

/* ---- chunk headers: what malloc really did ---- */

#define T_IS_MMAPPED 2UL
#define T_NON_MAIN_ARENA 4UL

/* The size word in front of a chunk's memory, flags included. */
static inline unsigned long t_size_word(const void *pointer) { return ((const volatile size_t *)pointer)[-1]; }

/* How many bytes the kernel mapped for this chunk; 0 if it is none of its own. */
static inline unsigned long t_mapped_bytes(const void *pointer) {
#ifdef T_FOREIGN
    (void)pointer;
    return 0;
#else
    if (!pointer || !(t_size_word(pointer) & T_IS_MMAPPED))
        return 0;
    unsigned long offset = ((const volatile size_t *)pointer)[-2] & ~7UL;
    /* From glibc 2.43 the chunk leaves its 16 bytes of header out of its size. */
    return (t_size_word(pointer) & ~7UL) + offset + (t_glibc() >= 43 ? 16 : 0);
#endif
}

static inline void t_note_result(const void *pointer) {
    unsigned long mapped = t_mapped_bytes(pointer);
    if (mapped)
        t_note(&t_crossings, mapped);
}

static inline void t_note_release(const void *pointer) {
    if (!t_mapped_bytes(pointer))
        return;
    t_add(&t_munmap_chunk, 1);
    unsigned long size_field = t_size_word(pointer);
    unsigned long ceiling = 4 * 1024 * 1024 * sizeof(long);
    if (!t_threshold_pinned && size_field > t_threshold && size_field <= ceiling) {
        /* The flag in the size makes one of just this size pass: glibc sets what it has, and nothing rises. */
        if ((size_field & ~7UL) > t_threshold)
            t_add(&t_raises, 1);
        t_threshold = size_field & ~7UL;
    }
}

#ifndef T_FOREIGN
/* Every threshold setting through mallopt ends the dynamic rule. */
static T_UNUSED void t_pin_threshold(int bytes) {
    mallopt(M_MMAP_THRESHOLD, bytes);
    t_threshold = (unsigned long)bytes;
    t_threshold_pinned = 1;
}
#endif

/* ---- the calls ---- */

static T_UNUSED void *t_malloc(size_t size) {
    t_count_malloc(size);
    void *pointer = malloc(size);
    t_note_result(pointer);
    return pointer;
}

static T_UNUSED void *t_calloc(size_t nmemb, size_t size) {
    t_count_calloc(nmemb, size);
    void *pointer = calloc(nmemb, size);
    t_note_result(pointer);
    return pointer;
}

static inline void t_note_moved(unsigned long mapped_before, const void *pointer) {
    unsigned long mapped_after = t_mapped_bytes(pointer);
    if (mapped_before && mapped_after) {
        if (mapped_after != mapped_before)
            t_add(&t_mremap_chunk, 1);
    } else if (mapped_after) {
        t_note(&t_crossings, mapped_after);
    }
}

static T_UNUSED void *t_realloc(void *old, size_t size) {
    unsigned long before = t_mapped_bytes(old);
    t_count_realloc(size);
    if (old && size == 0)
        t_note_release(old);
    void *pointer = realloc(old, size);
    if (pointer)
        t_note_moved(before, pointer);
    return pointer;
}

static T_UNUSED void *t_reallocarray(void *old, size_t nmemb, size_t size) {
    unsigned long before = t_mapped_bytes(old);
    t_count_reallocarray(nmemb, size);
    void *pointer = reallocarray(old, nmemb, size);
    if (pointer)
        t_note_moved(before, pointer);
    return pointer;
}

static T_UNUSED void *t_memalign(size_t alignment, size_t size) {
    t_count_memalign(alignment, size);
    void *pointer = memalign(alignment, size);
    t_note_result(pointer);
    return pointer;
}

static T_UNUSED void *t_aligned_alloc(size_t alignment, size_t size) {
    t_count_aligned_alloc(alignment, size);
    void *pointer = aligned_alloc(alignment, size);
    t_note_result(pointer);
    return pointer;
}

static T_UNUSED void *t_posix_memalign(size_t alignment, size_t size) {
    void *pointer = NULL;
    t_count_posix_memalign(alignment, size);
    if (posix_memalign(&pointer, alignment, size) != 0)
        return NULL;
    t_note_result(pointer);
    return pointer;
}

static T_UNUSED void *t_valloc(size_t size) {
    t_count_valloc(size);
    void *pointer = valloc(size);
    t_note_result(pointer);
    return pointer;
}

#ifndef T_FOREIGN
static T_UNUSED void *t_pvalloc(size_t size) {
    t_count_pvalloc(size);
    void *pointer = pvalloc(size);
    t_note_result(pointer);
    return pointer;
}
#endif

static T_UNUSED void t_free(void *pointer) {
    t_count_free(pointer);
    t_note_release(pointer);
    free(pointer);
}

/* ---- JSON ---- */

static char t_buffer[65536];
static size_t t_length;

static inline void t_text(const char *text) {
    while (*text && t_length < sizeof t_buffer)
        t_buffer[t_length++] = *text++;
}

static inline void t_number(unsigned long value) {
    char digits[24];
    unsigned at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    t_text(digits + at);
}

static inline void t_field(const char *name, unsigned long value) {
    t_text("\"");
    t_text(name);
    t_text("\":");
    t_number(value);
}

static inline void t_sizes(const struct t_row *row) {
    int first = 1;
    t_text("\"sizes\":[");
    for (unsigned bucket = 0; bucket < T_BUCKETS; bucket++) {
        if (!row->sizes[bucket])
            continue;
        t_text(first ? "{" : ",{");
        first = 0;
        t_field("lo", t_bucket_lo(bucket));
        t_text(",");
        t_field("hi", t_bucket_hi(bucket));
        t_text(",");
        t_field("calls", row->sizes[bucket]);
        t_text("}");
    }
    t_text("]");
}

static inline void t_object(const char *name, const struct t_row *row, int sized) {
    t_text(",\"");
    t_text(name);
    t_text("\":{");
    t_field("calls", row->calls);
    if (sized) {
        t_text(",");
        t_field("bytes", row->bytes);
        t_text(",");
        t_field("failed", row->failed);
        t_text(",");
        t_sizes(row);
    }
    t_text("}");
}

static inline void t_write(int fd, const char *text, size_t length) {
    while (length > 0) {
        ssize_t written = write(fd, text, length);
        if (written < 0) {
            if (errno == EINTR)
                continue;
            _exit(99);
        }
        text += written;
        length -= (size_t)written;
    }
}

/* Writes the account as one line of JSON. */
static T_UNUSED void t_print_to(int fd, const char *victim) {
    t_length = 0;
    t_text("{\"victim\":\"");
    t_text(victim);
    t_text("\",");
    t_field("pid", (unsigned long)getpid());
    for (int f = 0; f < T_FUNCTIONS; f++)
        t_object(t_names[f], &t_rows[f], f != T_FREE);
    t_object("crossings", &t_crossings, 1);
    t_text(",");
    t_field("munmap_chunk", t_munmap_chunk);
    t_text(",");
    t_field("mremap_chunk", t_mremap_chunk);
    t_text(",\"threshold\":{");
    t_field("bytes", t_threshold);
    t_text(",");
    t_field("raises", t_raises);
    t_text(",");
    t_field("pinned", (unsigned long)t_threshold_pinned);
    t_text("},\"facts\":{");
    for (unsigned i = 0; i < t_fact_count; i++) {
        if (i)
            t_text(",");
        t_field(t_facts[i].name, t_facts[i].value);
    }
    t_text("}}\n");
    if (t_length >= sizeof t_buffer)
        _exit(98);
    t_write(fd, t_buffer, t_length);
}

static inline unsigned long t_parse(const char *text, unsigned long otherwise) {
    unsigned long value = 0;
    if (!text || *text < '0' || *text > '9')
        return otherwise;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (unsigned long)(*text++ - '0');
    return value;
}

/* Standard output, or the descriptor that TRUTH_FD names. */
static T_UNUSED void t_print(const char *victim) { t_print_to((int)t_parse(getenv("TRUTH_FD"), 1), victim); }

/* A victim that cannot do what it is for says so and fails. */
static T_UNUSED void t_require(int condition, const char *what) {
    if (condition)
        return;
    size_t length = 0;
    while (what[length])
        length++;
    t_write(2, what, length);
    t_write(2, "\n", 1);
    _exit(97);
}

static inline int t_equal(const char *a, const char *b) {
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* A fixed sequence: the same victim asks for the same sizes in every run. */
static inline unsigned long t_next(unsigned long *state) {
    *state = *state * 6364136223846793005UL + 1442695040888963407UL;
    return *state >> 33;
}

#endif

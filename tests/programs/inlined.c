/*
 * inlined: brings a malloc of the shape of glibc's, whose sysmalloc the compiler makes a part of _int_malloc, as
 * Ubuntu's builds from 2.39 on have it. Only what the daemon looks for is there: the parameters with their first
 * values, the names, and the order in which sysmalloc decides. It counts its own steps.
 */
#define T_FOREIGN
#include "truth.h"
#include <sys/mman.h>
#include <sys/syscall.h>

/* As glibc 2.35 to 2.42 lays it out. */
struct malloc_par {
    size_t trim_threshold, top_pad, mmap_threshold, arena_test, arena_max, thp_pagesize, hp_pagesize;
    int hp_flags, n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold;
    size_t mmapped_mem, max_mmapped_mem;
    char *sbrk_base;
    size_t tcache_bins, tcache_max_bytes, tcache_count, tcache_unsorted_limit;
};
struct malloc_par mp_ = {
    .trim_threshold = 131072, .top_pad = 131072, .mmap_threshold = 131072, .arena_test = 8, .n_mmaps_max = 65536};

struct malloc_state {
    char *top;
    size_t left;
    char rest[2184];
};
struct malloc_state main_arena = {.rest = {1}};

unsigned long sysmalloc_calls, sysmalloc_bytes, arena_calls, crossings, growths;

#define SEPARATE __attribute__((noipa))

SEPARATE void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    register long r10 __asm__("r10") = flags;
    register long r8 __asm__("r8") = file;
    register long r9 __asm__("r9") = offset;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_mmap), "D"(address), "S"(length), "d"(protection), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result < 0 && result > -4096 ? MAP_FAILED : (void *)result;
}

SEPARATE int munmap(void *address, size_t length) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_munmap), "D"(address), "S"(length) : "rcx", "r11", "memory");
    return result ? -1 : 0;
}

static char *end;

SEPARATE void *sbrk(intptr_t bytes) {
    char *old = end, *now;
    if (!old)
        __asm__ volatile("syscall" : "=a"(old) : "a"(SYS_brk), "D"(0) : "rcx", "r11", "memory");
    if (bytes == 0)
        return end = old;
    __asm__ volatile("syscall" : "=a"(now) : "a"(SYS_brk), "D"(old + bytes) : "rcx", "r11", "memory");
    if (now != old + bytes)
        return (void *)-1;
    end = now;
    return old;
}

static inline __attribute__((always_inline)) void *sysmalloc(size_t nb, struct malloc_state *av) {
    sysmalloc_calls++;
    sysmalloc_bytes += nb;
    if (av == NULL || (nb >= mp_.mmap_threshold && mp_.n_mmaps < mp_.n_mmaps_max)) {
        size_t length = (nb + 8 + 4095) & ~4095UL;
        size_t *chunk = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk != MAP_FAILED) {
            mp_.n_mmaps++;
            mp_.mmapped_mem += length;
            crossings++;
            chunk[1] = length | 2;
            return chunk + 2;
        }
    }
    if (av == NULL)
        return NULL;
    size_t more = (nb + mp_.top_pad + 32 + 4095) & ~4095UL;
    char *grown = sbrk((intptr_t)more);
    if (grown == (void *)-1)
        return NULL;
    growths++;
    if (grown != av->top + av->left) {
        av->top = (char *)(((uintptr_t)grown + 15) & ~15UL);
        av->left = (size_t)(grown + more - av->top);
    } else
        av->left += more;
    char *chunk = av->top;
    av->top += nb;
    av->left -= nb;
    ((size_t *)chunk)[1] = nb | 1;
    return chunk + 16;
}

SEPARATE void *_int_malloc(struct malloc_state *av, size_t bytes) {
    arena_calls++;
    size_t nb = bytes + 23 < 32 ? 32 : (bytes + 23) & ~15UL;
    if (av && av->left >= nb + 32) {
        char *chunk = av->top;
        av->top += nb;
        av->left -= nb;
        ((size_t *)chunk)[1] = nb | 1;
        return chunk + 16;
    }
    return sysmalloc(nb, av);
}

SEPARATE void munmap_chunk(size_t *chunk) {
    size_t length = chunk[1] & ~7UL;
    mp_.n_mmaps--;
    mp_.mmapped_mem -= length;
    munmap(chunk, length);
}

void *malloc(size_t bytes) { return _int_malloc(&main_arena, bytes); }

void free(void *pointer) {
    if (pointer && ((size_t *)pointer)[-1] & 2)
        munmap_chunk((size_t *)pointer - 2);
}

void *calloc(size_t count, size_t bytes) {
    /* Memory of the kernel is zero, and none is used twice. */
    return _int_malloc(&main_arena, count * bytes);
}

void *realloc(void *pointer, size_t bytes) {
    char *moved = _int_malloc(&main_arena, bytes);
    size_t held = pointer ? (((size_t *)pointer)[-1] & ~7UL) - 16 : 0;
    for (size_t i = 0; i < held && i < bytes; i++)
        moved[i] = ((char *)pointer)[i];
    free(pointer);
    return moved;
}

int main(void) {
    void *volatile kept;
    for (size_t bytes = 100; bytes < 4000000; bytes += bytes / 3) {
        kept = malloc(bytes);
        free(kept);
        kept = calloc(3, bytes);
        kept = realloc(kept, bytes * 4);
    }
    t_require(crossings > 10 && growths > 2, "one way was hardly taken");
    t_fact("sysmalloc_calls", sysmalloc_calls);
    t_fact("sysmalloc_bytes", sysmalloc_bytes);
    t_fact("arena_calls", arena_calls);
    t_fact("crossings", crossings);
    t_fact("growths", growths);
    t_print("inlined");
    return 0;
}

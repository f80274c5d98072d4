/*
 * own_syscalls [N]: the program's own mmap, munmap, mremap and sbrk, N times each, between its allocations.
 * Two runs with different N differ by exactly that many calls of the program and by none of the allocator's.
 */
#include "truth.h"
#include <fcntl.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
    unsigned long times = argc > 1 ? t_parse(argv[1], 10) : 10;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    t_require(file >= 0, "open");
    unsigned long anonymous_bytes = 0;
    /* The heap exists before the first round, and no round needs more of it. */
    t_free(t_malloc(64));
    for (unsigned long i = 0; i < times; i++) {
        void *p = t_malloc(64);
        /* The same length and flags as a crossing of 1 MiB: only the caller tells them apart. */
        size_t length = 1052672 + i * page;
        char *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        t_require(map != MAP_FAILED, "mmap");
        anonymous_bytes += length;
        void *mapped = mmap(NULL, page, PROT_READ, MAP_PRIVATE, file, 0);
        t_require(mapped != MAP_FAILED, "mmap of a file");
        t_free(t_malloc(64));
        map = mremap(map, length, length + page, MREMAP_MAYMOVE);
        t_require(map != MAP_FAILED, "mremap");
        t_require(!munmap(map, length + page) && !munmap(mapped, page), "munmap");
        t_require(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "mmap of nothing");
        t_require(sbrk((intptr_t)page) != (void *)-1, "sbrk");
        t_free(p);
    }
    t_fact("mmap_other", times);
    t_fact("mmap_other_bytes", anonymous_bytes);
    t_fact("mmap_file", times);
    t_fact("mmap_failed", times);
    t_fact("munmap_other", times * 2);
    t_fact("mremap_other", times);
    t_fact("sbrk_calls", times);
    t_fact("sbrk_bytes", times * page);
    t_print("own_syscalls");
    return 0;
}

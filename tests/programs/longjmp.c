/*
 * Control that leaves by longjmp: between calls, out of a signal handler, and out of the middle of free,
 * realloc and posix_memalign, which fault on a bad pointer before they take any lock. The call that never
 * returns is still one call, and the one after it is counted as usual.
 */
#include "truth.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static sigjmp_buf back;

static void on_signal(int number) { siglongjmp(back, number); }

/* Not inlined: a frame that longjmp really drops. */
static __attribute__((noinline)) void deep(int depth, void **kept) {
    *kept = t_malloc(100 + (size_t)depth);
    if (depth == 0)
        siglongjmp(back, 1);
    deep(depth - 1, kept + 1);
}

/* What lives across sigsetjmp is volatile or static: longjmp may restore older registers. */
int main(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);

    static void *kept[11];
    for (volatile int i = 0; i < 100; i++) {
        if (sigsetjmp(back, 1) == 0)
            deep(10, kept);
        for (int j = 0; j < 11; j++)
            t_free(kept[j]);
    }

    for (volatile int i = 0; i < 100; i++) {
        void *volatile p = t_malloc(50);
        if (sigsetjmp(back, 1) == 0)
            raise(SIGUSR1);
        t_free(p);
    }

    /* The chunk header in front of `bad` lies in a page that cannot be read. */
    long page = sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, (size_t)page * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    t_require(pages != MAP_FAILED, "mmap");
    void *volatile bad = pages + page;
    volatile unsigned long faults = 0;
    for (volatile int i = 0; i < 50; i++) {
        if (sigsetjmp(back, 1) == 0) {
            t_count_free(bad);
            free(bad);
        } else {
            faults++;
        }
        t_free(t_malloc(60));
        if (sigsetjmp(back, 1) == 0) {
            t_count_realloc(70);
            t_require(realloc(bad, 70) == NULL, "realloc of a bad pointer");
        } else {
            faults++;
        }
        t_free(t_calloc(1, 80));
        if (sigsetjmp(back, 1) == 0) {
            t_count_posix_memalign(64, 90);
            t_require(posix_memalign((void **)bad, 64, 90) != 0, "posix_memalign to a bad pointer");
        } else {
            faults++;
        }
        t_free(t_realloc(NULL, 100));
    }
    t_fact("faults", faults);
    t_print("longjmp");
    return 0;
}
